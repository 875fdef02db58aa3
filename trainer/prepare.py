"""From two labelled folders to the features of three parts: fitted on, held out, test. What is left out is said.

Reading folders is `dataset`'s, computing features is `features`'; this module is the order of it and what a
person is told on the way. Knows nothing of recipes, thresholds or the store.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainer import dataset, looks
from trainer.arrays import IntArray
from trainer.dataset import Picture, Unreadable
from trainer.errors import DataError
from trainer.features import Compute, Features
from trainer.progress import Reporter
from worker.model.labels import LABELS

MAY_PASS: Final = frozenset({"decode_timeout", "decoder_crashed", "fetch_failed"})
"""Reasons that may be the machine's and not the picture's."""

PASSING_MAX: Final = 5
PASSING_SHARE_MAX: Final = 0.01
"""Pictures that may be missing for them, whichever is more: a handful that kills decoders must not end every run."""


@dataclass(frozen=True)
class Parts:
    """The pictures by what they are for; no content is in two parts."""

    fitted_on: list[Picture]
    held_out: list[Picture]
    test: list[Picture]


@dataclass(frozen=True)
class FeatureParts:
    """The features of `Parts`: middle frames to fit on, all frames to judge by.

    `near_duplicates` counts what was taken out of a part because it looks like a picture of a part before it.
    """

    fitted_on: Features
    held_out: Features
    test: Features
    near_duplicates: Mapping[str, int] = field(default_factory=dict)


def gather(train_folder: Path, test_folder: Path, reporter: Reporter) -> Parts:
    """Scan both folders and split them; what is taken out is said. Raises DataError where too little is left."""
    train, repeated, contradictory = dataset.once_each(dataset.scan(train_folder, "training"))
    test, test_repeated, test_contradictory = dataset.once_each(dataset.scan(test_folder, "test"))
    _say_removed(reporter, repeated, "training pictures repeat the content of others and are used once")
    _say_removed(reporter, contradictory, "training pictures lie under two labels and are left out")
    _say_removed(reporter, test_repeated, "test pictures repeat the content of others and are used once")
    _say_removed(reporter, test_contradictory, "test pictures lie under two labels and are left out")
    test, leaked = dataset.without_leaks([*train, *contradictory], test)
    _say_removed(reporter, leaked, "test pictures are in the training folder too and are taken out of the test")
    dataset.check_test(test)
    fitted_on, held_out = dataset.split(train)
    return Parts(fitted_on, held_out, test)


def _say_removed(reporter: Reporter, pictures: Sequence[Picture], what: str) -> None:
    if pictures:
        reporter.say(f"{len(pictures)} {what}: {dataset.listing([str(p.path) for p in pictures])}.")


def compute_all(parts: Parts, compute: Compute, reporter: Reporter, what: str = "Features") -> FeatureParts:
    """Features of every part, without pictures that look like those of a part before it; what is taken out is said.

    `what` names the work in its progress. Raises DataError where a label has too few left, or too many could not be
    read this time.
    """
    features = FeatureParts(
        compute(parts.fitted_on, "middle", f"{what} of pictures to fit on"),
        compute(parts.held_out, "all", f"{what} of held-out pictures"),
        compute(parts.test, "all", f"{what} of test pictures"),
    )
    _say_unreadable(reporter, features.fitted_on, features.held_out, role="training")
    _say_unreadable(reporter, features.test, role="test")
    _check_read(features.fitted_on, features.held_out, features.test)
    dataset.check_enough(features.fitted_on.pictures, features.held_out.pictures)
    _say_two_labels(reporter, features.fitted_on, features.held_out)
    features = _without_near_duplicates(features, reporter)
    _say_repeated(reporter, features.held_out, "held-out")
    _say_repeated(reporter, features.test, "test")
    dataset.check_held_out(features.held_out.pictures)
    dataset.check_test(features.test.pictures)
    return features


def _without_near_duplicates(features: FeatureParts, reporter: Reporter) -> FeatureParts:
    """The held-out part keeps nothing that looks like what is fitted on, the test part nothing like either."""
    fitted_on, held_out, test = features.fitted_on, features.held_out, features.test
    trained = (*fitted_on.pictures, *held_out.pictures)
    test_like = looks.nearest_known(test.looks, np.concatenate([fitted_on.looks, held_out.looks]))
    held_out_like = looks.nearest_known(held_out.looks, fitted_on.looks)
    _say_near(reporter, test.pictures, trained, test_like, "test pictures look like training pictures")
    _say_near(reporter, held_out.pictures, trained, held_out_like, "held-out pictures look like pictures fitted on")
    taken = {"held_out": int((held_out_like >= 0).sum()), "test": int((test_like >= 0).sum())}
    return FeatureParts(fitted_on, held_out.only(held_out_like < 0), test.only(test_like < 0), taken)


def _say_near(
    reporter: Reporter, pictures: Sequence[Picture], known: Sequence[Picture], like: IntArray, what: str
) -> None:
    pairs = [f"{pictures[int(i)].path} (like {known[int(like[i])].path})" for i in np.flatnonzero(like >= 0)]
    if pairs:
        reporter.say(f"{len(pairs)} {what} and are left out: {dataset.listing(pairs)}.")


def _say_repeated(reporter: Reporter, features: Features, role: str) -> None:
    """They stay in, for a plain picture looks like many; but ten copies of one picture show no more than one does."""
    paths = [str(features.pictures[int(i)].path) for i in np.flatnonzero(looks.repeated(features.looks))]
    if paths:
        reporter.say(
            f"{len(paths)} {role} pictures look like another of them and are counted as pictures of their own, so that "
            f"figures look surer than they are: leave one of each, where they are copies: {dataset.listing(paths)}."
        )


def _say_two_labels(reporter: Reporter, *features: Features) -> None:
    """Near-duplicates under two labels stay in: only a person can tell which label is wrong, or that none is."""
    pictures = [picture for part in features for picture in part.pictures]
    seen = np.concatenate([part.looks for part in features])
    labels = np.array([picture.label for picture in pictures])
    pairs = []
    for label in range(len(LABELS) - 1):
        mine, others = np.flatnonzero(labels == label), np.flatnonzero(labels > label)
        like = looks.nearest_known(seen[mine], seen[others])
        matched = np.flatnonzero(like >= 0)
        pairs += [f"{pictures[int(mine[i])].path} (like {pictures[int(others[like[i]])].path})" for i in matched]
    if pairs:
        names = dataset.listing(pairs)
        reporter.say(f"{len(pairs)} training pictures look like one of another label, check them: {names}.")


def _say_unreadable(reporter: Reporter, *features: Features, role: str) -> None:
    lost = [file for part in features for file in part.unreadable]
    if lost:
        names = dataset.listing([str(file.path) for file in lost])
        reporter.say(f"{len(lost)} {role} files are no usable pictures, left out ({_reasons(lost)}): {names}.")


def _check_read(*features: Features) -> None:
    """Raises DataError where a busy machine or a failing disk took so many that the rest is not what was supplied."""
    lost = [file for part in features for file in part.unreadable if file.reason in MAY_PASS]
    supplied = sum(len(part.pictures) + len(part.unreadable) for part in features)
    if len(lost) > max(PASSING_MAX, PASSING_SHARE_MAX * supplied):
        raise DataError(
            f"{len(lost)} of {supplied} pictures could not be read for reasons that may pass ({_reasons(lost)}): see "
            "the disk and what else the machine does and run it again, and remove pictures that fail every time: "
            f"{dataset.listing([str(file.path) for file in lost])}."
        )


def _reasons(lost: Sequence[Unreadable]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(one.reason for one in lost).items()))


def describe(features: FeatureParts) -> dict[str, Any]:
    """The data part of a manifest: digests and counts of what was usable."""
    parts = (features.fitted_on, features.held_out, features.test)
    train = [*features.fitted_on.pictures, *features.held_out.pictures]
    return {
        "digest": dataset.digest(train),
        "test_digest": dataset.digest(features.test.pictures),
        "counts": {
            "fitted_on": dataset.counts(features.fitted_on.pictures),
            "held_out": dataset.counts(features.held_out.pictures),
            "test": dataset.counts(features.test.pictures),
        },
        "unreadable": sum(len(part.unreadable) for part in parts),
        "near_duplicates": dict(features.near_duplicates),
        "formats": dict(sorted(Counter(facts.format for part in parts for facts in part.facts).items())),
    }
