"""clusters.html as the person who names clusters sees it: opened in Debian's Chromium on a phone's width."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.browser import Page, chromium
from tests.tiny_network import TINY
from trainer.bases import random_base
from trainer.decoding import decoder_pool
from trainer.features import computer
from trainer.first_labels import Plan, gather
from trainer.frozen import FrozenPart
from trainer.progress import Reporter
from worker.model import network as networks
from worker.model.preprocessing import Preprocessing

networks.register(TINY)
EVIL = '"><img src=x onerror=alert(1)><b class=injected>'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    chromium()
    root = tmp_path_factory.mktemp("clusters")
    (root / "in").mkdir()
    rng = np.random.default_rng(3)
    for i in range(24):
        pixels = np.clip(rng.normal(60 + 60 * (i % 3), 25, (48, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "in" / f"{EVIL if i == 0 else f'{i}-' + 'x' * 80}.png")
    part = FrozenPart(TINY, random_base(TINY, 0), Preprocessing(), torch.device("cpu"))
    plan = Plan(root / "in", root / "out", method="kmeans", count=3, smallest=5, doubt_max=0.9, sample=6)
    reporter = Reporter(io.StringIO())
    with decoder_pool(Preprocessing()) as decoders:
        gather(plan, computer(part, decoders, reporter), decoders, {"method": "kmeans", "base": EVIL}, reporter)
    with Page(tmp_path_factory.mktemp("browser") / "profile") as opened:
        opened.open(root / "out" / "clusters.html", 390)
        yield opened


def test_the_page_asks_for_nothing_and_is_as_wide_as_the_screen(page: Page) -> None:
    page.value("Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode(); }))")
    asked = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
    assert [url[:80] for url in asked if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1
    width, shown = page.value("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= shown
    assert page.value("[...document.images].filter(i => !i.naturalWidth).length") == 0


def test_a_sheet_is_blurred_until_it_is_asked_for_and_no_other_with_it(page: Page) -> None:
    filters = "[...document.querySelectorAll('.sheet')].map(s => getComputedStyle(s.querySelector('img')).filter)"
    assert all("blur" in one for one in page.value(filters))
    page.click("label[for=show-c01]")
    assert [one == "none" for one in page.value(filters)] == [False, True, False, False]
    page.click("label[for=show-c01]")
    assert all("blur" in one for one in page.value(filters))


def test_names_that_are_html_stay_text(page: Page) -> None:
    assert page.value("document.querySelectorAll('.injected, script').length") == 0
    assert EVIL in page.value("document.querySelector('main').textContent")
