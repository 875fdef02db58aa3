"""The numbers of a preprocessing: what is refused, and what a manifest from before means."""

import pytest

from worker.errors import WeightsError
from worker.model.preprocessing import Preprocessing

PREPROCESSING = Preprocessing()


def test_preprocessing_reads_back_what_it_writes() -> None:
    """The manifest's form and the value are the same thing; whole numbers for mean and std are numbers too."""
    assert Preprocessing.from_json(PREPROCESSING.to_json()) == PREPROCESSING
    assert Preprocessing.from_json({**PREPROCESSING.to_json(), "mean": [0, 0, 0]}).mean == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 0},
        {"resize": 256.0},
        {"crop": 300},
        {"crop": True},
        {"mean": [0.5]},
        {"std": [1.0, 0.0, 1.0]},
        {"mean": "abc"},
        {"mean": [float("nan")] * 3},
        {"interpolation": "nearest"},
        {"max_frames": 0},
        {"gamma": 2.2},
        {"jpeg_margins": [1.5]},
        {"jpeg_margins": [0.5, 1.0]},
        {"jpeg_margins": [2.0, 1.5]},
        {"jpeg_margins": [1.0, 65.0]},
        {"jpeg_margins": [float("nan"), 2.0]},
        {"on_black": 1},
        {"as_tagged": None},
        {"long_from": 0.5},
        {"long_from": float("nan")},
    ],
)
def test_preprocessing_that_cannot_be_served_is_refused(change: dict[str, object]) -> None:
    """An unknown field or value never becomes a silently different picture."""
    with pytest.raises(WeightsError):
        Preprocessing.from_json({**PREPROCESSING.to_json(), **change})


def test_a_version_from_before_a_jpeg_had_margins_keeps_its_form_and_its_margins() -> None:
    """Its id follows from the form, and it was fitted on JPEGs decoded at half where twice the pixels remain."""
    before = Preprocessing().to_json()
    for name in ("jpeg_margins", "on_black", "as_tagged", "long_from"):
        del before[name]
    read = Preprocessing.from_json(before)
    assert read.to_json() == before
    assert (read.jpeg_margins, read.on_black, read.as_tagged, read.long_from) == ((2.0, 2.0), False, False, 0.0)


def test_a_missing_field_is_refused() -> None:
    """Defaults are for new versions, not for a manifest that lost a field."""
    document = PREPROCESSING.to_json()
    del document["std"]
    with pytest.raises(WeightsError):
        Preprocessing.from_json(document)
