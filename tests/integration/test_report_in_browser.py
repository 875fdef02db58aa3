"""report.html as people see it: opened in Debian's Chromium, on a phone's width and on a desk's."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.browser import Page, chromium
from tests.tiny_network import TINY
from trainer.fit import fit
from trainer.plan import Plan
from trainer.progress import Reporter
from worker.model import network as networks
from worker.model.labels import LABELS
from worker.model.weights import WeightsStore

networks.register(TINY)
EVIL = '"><img src=x onerror=alert(1)><b class=injected>'


def draw(root: Path, per_label: int, seed: int) -> Path:
    """Pictures of which only some can be told apart, so that there are mistakes to show."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(LABELS):
        (root / name).mkdir(parents=True)
        for i in range(per_label):
            colour = 120 + 12 * (np.arange(3) == label) + rng.normal(0, 12, 3)
            pixels = np.clip(colour + rng.normal(0, 40, (96, 120, 3)), 0, 255).astype(np.uint8)
            odd = EVIL.replace("/", "") if i == 0 else f"{name}-{seed}-{i}-{'x' * 60}"
            Image.fromarray(pixels).save(root / name / f"{odd}.png")
    return root


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a version that has a parent, of pictures and people with names that are HTML."""
    chromium()
    root = tmp_path_factory.mktemp("report")
    store = WeightsStore(root / "weights")
    train, test = draw(root / "train", 12, 1), draw(root / "test", 8, 2)
    for recipe in ("article", "default"):
        plan = Plan(train, test, by=EVIL, base="random:0", recipe=recipe, network="tiny", device="cpu", explained=4)
        made = fit(plan, store, Reporter(io.StringIO()))
    assert made.parent is not None
    return store.root / "versions" / made.id / "report.html"


@pytest.fixture(scope="module", params=[390, 1280])
def page(request: pytest.FixtureRequest, report: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(tmp_path_factory.mktemp("browser") / "profile") as opened:
        opened.open(report, request.param)
        yield opened


def test_nothing_is_asked_for_beyond_the_file_itself(page: Page, report: Path) -> None:
    page.value("Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode(); }))")
    asked = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
    assert report.as_uri() in asked
    assert [url[:80] for url in asked if url != report.as_uri() and not url.startswith("data:")] == []


def test_the_page_is_as_wide_as_the_screen(page: Page) -> None:
    width, shown = page.value("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= shown


def test_every_drawing_and_thumbnail_can_be_seen(page: Page) -> None:
    page.value("Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode(); }))")
    assert page.value("document.images.length") >= 5 + 3 * 8
    assert page.value("[...document.images].filter(i => !i.naturalWidth || !i.width).length") == 0


@pytest.mark.parametrize("section", ["explanation", "mistakes", "training"])
def test_a_picture_is_blurred_until_it_is_clicked_and_again_afterwards(page: Page, section: str) -> None:
    blurred = f"getComputedStyle(document.querySelector('#{section} .blurred img')).filter"
    assert "blur" in page.value(blurred)
    page.click(f"#{section} .blurred .frame")
    assert page.value(blurred) == "none"
    page.click(f"#{section} .blurred .frame")
    assert "blur" in page.value(blurred)


def test_every_mistake_and_everything_risked_is_blurred(page: Page) -> None:
    assert page.value("document.querySelectorAll('#mistakes .tile').length") > 0
    assert page.value("document.querySelectorAll('#mistakes .tile:not(.blurred)').length") == 0
    assert page.value("document.querySelectorAll('#training .tile.blurred').length") == 8
    plain = page.value("[...document.querySelectorAll('#explanation .maps:not(.blurred)')].map(m => m.textContent)")
    assert all("approved, called approved" in text or "not_suitable, called not_suitable" in text for text in plain)


def test_explained_pictures_show_two_maps_before_and_after_fine_tuning(page: Page) -> None:
    rows = "[...document.querySelectorAll('#explanation .maps')].map(m => m.querySelectorAll('.row').length)"
    images = "[...document.querySelectorAll('#explanation .row')].map(r => r.querySelectorAll('img').length)"
    assert page.value(rows) == [2] * 4
    assert page.value(images) == [3] * 8
    said = page.value("document.querySelector('#explanation .maps').textContent")
    assert "untrained last layer (seed 0)" in said and "fine-tuned: tiny-" in said


def test_names_that_are_html_stay_text(page: Page) -> None:
    assert page.value("document.querySelectorAll('.injected, script').length") == 0
    assert EVIL in page.value("document.querySelector('#provenance').textContent")
    refused = [e for e in page.events if e["method"] in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening")]
    assert refused == []
