"""Parts of which not all could be read, or that look alike; features made up stand in for decoders."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from trainer import prepare
from trainer.cache import FrameChoice
from trainer.dataset import Facts, Picture, Unreadable
from trainer.errors import DataError
from trainer.features import Compute, Features
from trainer.looks import LOOK_BYTES
from trainer.prepare import Parts
from trainer.progress import Reporter
from worker.model.labels import LABELS

FACTS = (Facts("PNG", 24, 20),)


def parts(per_label: int) -> Parts:
    def some(role: str) -> list[Picture]:
        return [Picture(Path(f"{role}{i}"), i % 3, f"{role}{i}") for i in range(3 * per_label)]

    return Parts(some("fitted"), some("held"), some("test"))


def computed(lost: dict[str, str], alike: Sequence[str] = ()) -> Compute:
    """Features of none of the `lost`, which are reasons by path; those `alike` look the same."""
    rng = np.random.default_rng(0)

    def compute(pictures: Sequence[Picture], _: FrameChoice, __: str) -> Features:
        kept = tuple(picture for picture in pictures if str(picture.path) not in lost)
        looks = rng.integers(0, 256, (len(kept), LOOK_BYTES), np.uint8)
        for at, picture in enumerate(kept):
            if str(picture.path) in alike:
                looks[at] = 7
        unreadable = tuple(Unreadable(p.path, lost[str(p.path)], "") for p in pictures if str(p.path) in lost)
        return Features(
            np.zeros((len(kept), 1), np.float32), np.arange(len(kept)), kept, unreadable, looks, FACTS * len(kept)
        )

    return compute


def prepared(made: Parts, compute: Compute) -> str:
    """What is said on the way."""
    said = io.StringIO()
    prepare.compute_all(made, compute, Reporter(said))
    return said.getvalue()


@pytest.mark.parametrize("reason", ["decode_timeout", "decoder_crashed", "fetch_failed"])
def test_a_run_that_could_not_read_many_pictures_this_time_is_none(reason: str) -> None:
    """Or what a busy machine left over would be fitted, and be done for every later run."""
    with pytest.raises(DataError, match=rf"^6 of 180 pictures .* may pass \(6 {reason}\): .*'fitted0', "):
        prepared(parts(20), computed({f"fitted{i}": reason for i in range(6)}))


@pytest.mark.parametrize(("per_label", "reason", "lost"), [(20, "decode_timeout", 5), (20, "unreadable", 20),
                                                           (100, "decoder_crashed", 9)])  # fmt: skip
def test_a_handful_and_what_is_no_picture_are_left_out(per_label: int, reason: str, lost: int) -> None:
    said = prepared(parts(per_label), computed({f"fitted{i}": reason for i in range(lost)}))
    assert f"{lost} training files are no usable pictures, left out ({lost} {reason})" in said


def test_too_few_that_can_be_read_is_said_as_that() -> None:
    with pytest.raises(DataError, match=f"Only 2 training pictures of '{LABELS[0]}' can be read"):
        prepared(parts(2), computed({"held0": "unreadable", "held3": "unreadable"}))


def test_held_out_pictures_that_near_duplicates_have_taken_are_not_called_unreadable() -> None:
    alike = ["fitted1", *(f"held{i}" for i in range(1, 12, 3))]
    with pytest.raises(DataError, match=f"Every held-out picture of '{LABELS[1]}' looks like one that is fitted on"):
        prepared(parts(4), computed({}, alike))
