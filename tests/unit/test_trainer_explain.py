"""Shapley maps of pictures: `moderation-trainer explain` on the tiny network that tells labels by colour."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.pictures import animation, picture
from tests.support.store import colour_store, publish_colours
from tests.tiny_network import TINY
from trainer import explain, maps, recipes
from trainer.arrays import FloatArray, Frames
from trainer.assess import stored_head
from trainer.cli import run
from trainer.explain import Background, Shown
from trainer.shapley import Cut
from worker.model import network as networks
from worker.model.labels import LABELS, RISKED
from worker.model.preprocessing import Preprocessing
from worker.model.weights import WeightsStore

networks.register(TINY)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> WeightsStore:
    return colour_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of each label, and an animation whose second frame is risked."""
    folder = tmp_path_factory.mktemp("pictures")
    for label in LABELS:
        (folder / label).write_bytes(picture(label))
    (folder / "moving").write_bytes(animation(["approved", "risked", "approved"]))
    return folder


def one_sentence(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith(".\n") and "Traceback" not in text


def half_red() -> Frames:
    frame = np.zeros((224, 224, 3), np.uint8)
    frame[:, :112], frame[:, 112:] = (220, 30, 30), (110, 130, 110)
    return frame


def cut_of(store: WeightsStore, layer: str | None = None) -> Cut:
    manifest = store.manifest(store.champion() or "")
    base = store.read_base(manifest.base.sha256, manifest.base.bytes)
    return Cut(TINY, base, Preprocessing(), torch.device("cpu"), layer)


@pytest.mark.parametrize("layer", ["features.0", "features.1"])
def test_a_map_adds_up_to_the_logit_less_its_mean_over_the_background(store: WeightsStore, layer: str) -> None:
    """At whichever layer: that is what makes the colours shares of something."""
    manifest = store.manifest(store.champion() or "")
    head = explain.heads_of(store, manifest, None)[1]
    cut, background = cut_of(store, layer), np.full((2, 224, 224, 3), 128, np.uint8)
    background[1] = 60
    reached, against = cut.activations(half_red()[None]), cut.activations(background)
    (first, second) = cut.maps(head, reached, against, 50)[0]
    fitted = stored_head(store, manifest)
    last = {"weight": torch.tensor(fitted.weight), "bias": torch.tensor(fitted.bias)}

    def logits(frames: Frames) -> FloatArray:
        module = TINY.build().eval()
        base = store.read_base(manifest.base.sha256, manifest.base.bytes)
        module.load_state_dict(base | {f"{TINY.head}.{name}": value for name, value in last.items()})
        with torch.no_grad():
            made: FloatArray = module(
                networks.normalise(torch.from_numpy(frames), Preprocessing(), torch.float32)
            ).numpy()
        return made

    expected = logits(half_red()[None])[0] - logits(background).mean(axis=0)
    for one in (first, second):
        assert one.values.sum() == pytest.approx(expected[one.label], rel=0.1)
    assert first.probability > second.probability


def test_red_lies_on_what_speaks_for_a_label_and_blue_on_what_speaks_against_it(store: WeightsStore) -> None:
    manifest = store.manifest(store.champion() or "")
    heads = explain.heads_of(store, manifest, None)
    grey = Background(np.full((1, 224, 224, 3), 120, np.uint8), "grey")
    (made,) = explain.explain(cut_of(store), heads, [Shown("half", half_red()[None])], grey, 20)
    row = made.rows[1]
    first, second = row.maps
    assert LABELS[first.label] == "risked"
    assert first.values[:, :112].sum() > 0 > first.values[:, 112:].sum()
    assert second.values[:, :112].sum() < 0
    drawn = maps.overlay(made.frame, first.values, maps.scale_of(row)).astype(int)
    red_less_blue = (drawn[..., 0] - drawn[..., 2]).mean(axis=0)
    assert red_less_blue[:112].mean() > 20 > 0 > red_less_blue[112:].mean()


def test_before_fine_tuning_is_the_layer_that_the_articles_recipe_starts_from() -> None:
    with recipes.seeded(recipes.SEED, torch.device("cpu")):
        started = torch.nn.Linear(6, 3)
    head = explain.untrained(6)
    assert np.array_equal(head.fitted.weight, started.weight.detach().numpy())
    assert "untrained" in head.said and "seed 0" in head.said


def test_the_same_picture_gives_the_same_png_and_disturbs_no_random_numbers(
    store: WeightsStore, pictures: Path, tmp_path: Path
) -> None:
    arguments = ["explain", "--image", str(pictures / "risked"), "--weights", str(store.root), "--samples", "5"]
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    assert run([*arguments, "--out", str(tmp_path / "a.png")]) == 0
    assert np.random.random() == expected
    assert run([*arguments, "--out", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_png_has_two_rows_a_picture_from_files_and_from_the_content_store(
    store: WeightsStore, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERATION_CONTENT_URL", f"file://{pictures}/{{content_id}}")
    at = ["--weights", str(store.root), "--samples", "3"]
    heights = []
    for more in (["--image", str(pictures / "approved")], ["--content-id", "moving", "--content-id", "risked"]):
        out = tmp_path / f"{len(more)}.png"
        assert run(["explain", *more, "--out", str(out), *at]) == 0
        with Image.open(out) as image:
            assert image.format == "PNG"
            heights.append(image.height)
    row = round((maps.CELL_INCHES + maps.ROW_INCHES) * maps.DPI)
    assert heights[1] - heights[0] == pytest.approx(2 * row, abs=2)


def test_of_an_animation_the_deciding_frame_is_explained(store: WeightsStore) -> None:
    manifest = store.manifest(store.champion() or "")
    green = np.zeros((224, 224, 3), np.uint8) + np.array([30, 200, 30], np.uint8)
    shown = Shown("moving", np.stack([green, half_red(), green]))
    against = explain.neutral(Preprocessing())
    (made,) = explain.explain(cut_of(store), explain.heads_of(store, manifest, None), [shown], against, 2)
    assert made.name == "moving (frame 2 of 3)"
    assert made.rows[1].maps[0].label == RISKED


def test_another_version_of_the_same_base_may_stand_before(
    store: WeightsStore, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = publish_colours(store, sharpness=2.0)
    out = tmp_path / "out.png"
    arguments = ["explain", "--image", str(pictures / "risked"), "--out", str(out), "--weights", str(store.root)]
    background = tmp_path / "background"
    background.mkdir()
    for i in range(3):
        (background / f"{i}.jpg").write_bytes(picture("approved"))
    assert (
        run([*arguments, "--before", other, "--version", store.champion() or "", "--background", str(background)]) == 0
    )
    assert out.stat().st_size > 1000
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("more", "code", "word"),
    [
        ([], 2, "--image FILE or --content-id ID"),
        (["--image", "PICTURES/nothing"], 2, "does not exist"),
        (["--content-id", "../../etc"], 2, "not a content ID"),
        (["--content-id", "absent"], 4, "not_found"),
        (["--image", "PICTURES/risked", "--layer", "features.99"], 2, "features.0, features.1"),
        (["--image", "PICTURES/risked", "--layer", "classifier.0"], 2, "features.0, features.1"),
        (["--image", "PICTURES/risked", "--version", "tiny-000000000000"], 2, "tiny-000000000000"),
        (["--image", "PICTURES/risked", "--before", "tiny-000000000000"], 2, "tiny-000000000000"),
        (["--image", "PICTURES/risked", "--samples", "0"], 2, "--samples"),
        (["--image", "ELSEWHERE/notes.txt"], 4, "unsupported_format"),
        (["--image", "ELSEWHERE/huge"], 4, "larger than 20971520 bytes"),
        (["--image", "PICTURES/risked", "--out", "ELSEWHERE/absent/out.png"], 2, "for --out: create it"),
        (["--image", "PICTURES/risked", "--background", "ELSEWHERE"], 4, "None of the 2 files"),
        (["--image", "PICTURES/risked", "--background", "ELSEWHERE/absent"], 4, "background"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    more: list[str],
    code: int,
    word: str,
    store: WeightsStore,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODERATION_CONTENT_URL", f"file://{pictures}/{{content_id}}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "notes.txt").write_text("no picture")
    (elsewhere / "huge").touch()
    os.truncate(elsewhere / "huge", 20 * 2**20 + 1)  # as the worker, which reads no further
    named = [text.replace("PICTURES", str(pictures)).replace("ELSEWHERE", str(elsewhere)) for text in more]
    out = tmp_path / "out.png"
    assert run(["explain", "--out", str(out), *named, "--weights", str(store.root)]) == code
    heard = capsys.readouterr()
    assert one_sentence(heard.err) and word in heard.err
    assert heard.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODERATION_CONTENT_URL", "/srv/content"),
        ("MODERATION_CONTENT_URL", "file:///absent/here/{content_id}"),
        ("MODERATION_CONTENT_OPTIONS", "key=secret"),
    ],
)
def test_a_content_setting_that_cannot_be_used_exits_2(
    name: str,
    value: str,
    store: WeightsStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)
    assert run(["explain", "--content-id", "x", "--out", str(tmp_path / "o.png"), "--weights", str(store.root)]) == 2
    heard = capsys.readouterr().err
    assert one_sentence(heard) and "secret" not in heard


def test_a_name_that_is_a_formula_or_no_text_is_drawn_as_it_is(store: WeightsStore, tmp_path: Path) -> None:
    image = tmp_path / "$\\frac{1}{$ 猫.png"
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(buffer, "PNG")
    image.write_bytes(buffer.getvalue())
    out = tmp_path / "out.png"
    assert (
        run(["explain", "--image", str(image), "--out", str(out), "--weights", str(store.root), "--samples", "2"]) == 0
    )
    assert out.exists()


def test_who_explains_nothing_does_not_wait_for_shap() -> None:
    code = "import sys, trainer.cli, trainer.fit; sys.exit('shap' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
