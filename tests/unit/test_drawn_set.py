"""The demo's drawn stand-in pictures: repeatable, laid out like a real data set, not told by colour alone."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deploy.demo.draw import draw_set
from worker.errors import UsageError
from worker.model.labels import LABELS
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits, decode

TRAIN_PER_LABEL, TEST_PER_LABEL = 60, 20


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    draw_set(root, TRAIN_PER_LABEL, TEST_PER_LABEL)
    return root


@pytest.fixture(scope="module")
def decoded(drawn: Path) -> dict[Path, Decoded]:
    """What the worker makes of every picture; it raises where one is not readable."""
    preprocessing, limits = Preprocessing(), DecodeLimits()
    return {path: decode(path.read_bytes(), preprocessing, limits) for path in files(drawn)}


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in files(root)}


def test_one_seed_always_draws_the_same_bytes(tmp_path: Path) -> None:
    """Two runs agree in every name and byte; another seed shares neither a name nor a picture with them."""
    for folder, seed in (("first", 7), ("second", 7), ("other", 8)):
        draw_set(tmp_path / folder, 20, 2, seed)
    first, other = contents(tmp_path / "first"), contents(tmp_path / "other")
    assert contents(tmp_path / "second") == first
    assert not first.keys() & other.keys()
    assert not set(first.values()) & set(other.values())


def test_drawing_again_completes_a_set(tmp_path: Path) -> None:
    """A larger set holds the smaller one's pictures; the same folder can be filled up and drawn again."""
    draw_set(tmp_path, 2, 1)
    before = contents(tmp_path)
    draw_set(tmp_path, 3, 1)
    assert before.items() <= contents(tmp_path).items()
    assert len(contents(tmp_path)) == 3 * (3 + 1)


def test_sets_are_never_mixed(tmp_path: Path) -> None:
    """A folder that holds other pictures is refused, and left as it was."""
    draw_set(tmp_path, 1, 1, seed=1)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="new or empty folder"):
        draw_set(tmp_path, 1, 1, seed=2)
    assert contents(tmp_path) == before


def test_what_cannot_be_drawn_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Negative numbers, and a root that is a file, are the caller's mistakes."""
    for numbers in ((-1, 1, 0), (1, -1, 0), (1, 1, -1)):
        with pytest.raises(UsageError, match="0 or more"):
            draw_set(tmp_path / "new", *numbers)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="give another folder"):
        draw_set(tmp_path / "file", 1, 1)


def test_folders_are_those_of_a_data_set(drawn: Path) -> None:
    """train and test, interim, the three labels, and in each as many pictures as asked for."""
    counts = Counter(path.parent.relative_to(drawn).as_posix() for path in files(drawn))
    expected = {"train": TRAIN_PER_LABEL, "test": TEST_PER_LABEL}
    assert counts == {f"{split}/interim/{label}": n for split, n in expected.items() for label in LABELS}


def test_content_ids_are_valid_unique_and_tell_nothing(drawn: Path) -> None:
    """IDs are what the worker accepts, differ even where case is ignored, and put no label before another."""
    ids = [path.stem for path in files(drawn)]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,128}", content_id) for content_id in ids)
    assert len({content_id.lower() for content_id in ids}) == len(ids)
    in_order = [path.parent.name for path in sorted(files(drawn), key=lambda path: path.stem)]
    changes = sum(left != right for left, right in pairwise(in_order))
    assert changes > len(ids) / 2  # of neighbours drawn at random two in three differ


def test_formats_are_mixed_and_the_same_for_every_label(drawn: Path) -> None:
    """Every kind of upload occurs: grey, palette and alpha, EXIF turns, animations; none tells the label."""
    kinds: dict[str, Counter[str]] = {label: Counter() for label in LABELS}
    sizes: list[int] = []
    for path in files(drawn):
        with Image.open(path) as image:
            # Pillow opens an animation in whichever mode suits its decoder.
            mode = "animated" if getattr(image, "n_frames", 1) > 1 else image.mode
            turned = "turned" if image.getexif().get(0x0112, 1) != 1 else "upright"
            kinds[path.parent.name][f"{path.suffix} {image.format} {mode} {turned}"] += 1
            sizes += image.size
    assert kinds["approved"].keys() == {
        ".gif GIF animated upright",
        ".jpg JPEG L upright",
        ".jpg JPEG RGB turned",
        ".jpg JPEG RGB upright",
        ".png PNG P upright",
        ".png PNG RGB upright",
        ".png PNG RGBA upright",
        ".webp WEBP animated upright",
        ".webp WEBP RGB upright",
    }
    assert kinds["approved"] == kinds["not_suitable"] == kinds["risked"]
    assert min(sizes) >= 300
    assert max(sizes) <= 1000


def test_the_worker_reads_every_picture(decoded: dict[Path, Decoded]) -> None:
    """No picture of the set is an undecided one, and animations give more than one frame."""
    assert len(decoded) == 3 * (TRAIN_PER_LABEL + TEST_PER_LABEL)
    most: Counter[str] = Counter()
    for path, picture in decoded.items():
        most[path.suffix] = max(most[path.suffix], len(picture.frames))
    assert most[".jpg"] == most[".png"] == 1
    assert most[".gif"] > 1
    assert most[".webp"] > 1


@pytest.mark.parametrize("seen", ["crop", "whole"])
def test_mean_colour_does_not_tell_the_label(decoded: dict[Path, Decoded], seen: str) -> None:
    """Who sees only the mean colour, of the crop or of the whole picture, stays under 0.6; chance is 1/3."""
    colours = np.array([mean_colour(path, picture, seen) for path, picture in decoded.items()])
    labels = [path.parent.name for path in decoded]
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for classifier in (
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(StandardScaler(), KNeighborsClassifier(9)),
        RandomForestClassifier(100, random_state=0),
    ):
        accuracy = cross_val_score(classifier, colours, labels, cv=folds).mean()
        assert accuracy < 0.6, classifier


def mean_colour(path: Path, picture: Decoded, seen: str) -> npt.NDArray[np.float64]:
    """Mean red, green and blue, 0 to 255, of the first frame."""
    if seen == "crop":
        return np.asarray(picture.frames[0].mean(axis=(0, 1)))
    with Image.open(path) as image:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return np.asarray(np.asarray(Image.alpha_composite(white, colours))[:, :, :3].mean(axis=(0, 1)))
