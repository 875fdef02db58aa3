"""Labelled folders in, lists of pictures out: what there is, under which label, and its SHA-256.

    DIR/<label>/**/<content_id>.<ext>  ──►  Picture(path, label, sha256)  ──►  fitted on | held out | test

A file counts by what is in it, not by its suffix: whether it is a picture shows when it is decoded, with the
worker's own decoder, so GIF and AVIF are not skipped in silence. Knows nothing of decoding, features or training.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.errors import DataError
from worker.model.labels import LABELS

MIN_TRAIN_PER_LABEL: Final = 5
"""Fewer training pictures of a label leave nothing to hold out (a fifth) and to cross-validate on (the rest)."""

HOLDOUT_SHARE: Final = 0.2
"""The share of the training pictures that nothing is fitted on: temperature and thresholds come from it."""

UNLABELLED: Final = -1
"""The label of a picture that nobody has labelled."""

LISTED_AT_MOST: Final = 10
"""Files named in a message about many; the rest is a count."""


@dataclass(frozen=True)
class Picture:
    """A file. `label` is an index into LABELS, or UNLABELLED; `sha256` the hex digest of the file's bytes."""

    path: Path
    label: int
    sha256: str

    @property
    def content_id(self) -> str:
        """The content ID, which is the file's name without its suffix."""
        return self.path.stem


@dataclass(frozen=True)
class Unreadable:
    """A file that was left out, with the reason an undecided verdict would name."""

    path: Path
    reason: str
    detail: str


@dataclass(frozen=True)
class Facts:
    """What decoding showed of a picture: Pillow's format name and the size in pixels as shown."""

    format: str
    width: int
    height: int


def scan(folder: Path, role: str) -> list[Picture]:
    """List the pictures under `folder`, sorted by label and path.

    `role` ("training", "test") names the folder in messages. Hidden files are ignored. Raises DataError for a
    missing folder or label folder, a folder that is no label, a file that cannot be opened, an empty label.
    """
    _check_label_folders(folder, role)
    pictures = []
    for label, name in enumerate(LABELS):
        files = sorted(path for path in (folder / name).rglob("*") if _is_candidate(path, folder))
        if not files:
            raise DataError(f"The {role} folder {str(folder / name)!r} is empty: put pictures there.")
        pictures += [Picture(path, label, _sha256(path)) for path in files]
    return pictures


def scan_unlabelled(folder: Path, role: str, at_most: int | None = None) -> list[Picture]:
    """List the files under `folder`, whatever their folders are called, sorted by path; hidden ones are ignored.

    Of more than `at_most` so many are drawn by the hash of their paths within `folder`, the same ones every time.
    Raises DataError for a missing or empty folder and a file that cannot be opened.
    """
    if not folder.is_dir():
        raise DataError(f"There is no {role} folder {str(folder)!r}: name one that holds pictures.")
    files = sorted(path for path in folder.rglob("*") if _is_candidate(path, folder))
    if not files:
        raise DataError(f"The {role} folder {str(folder)!r} is empty: put pictures there.")
    if at_most is not None:
        files = sorted(sorted(files, key=lambda path: _hash(str(path.relative_to(folder))))[:at_most])
    return [Picture(path, UNLABELLED, _sha256(path)) for path in files]


def _check_label_folders(folder: Path, role: str) -> None:
    if not folder.is_dir():
        raise DataError(f"There is no {role} folder {str(folder)!r}: name one that holds the label folders.")
    found = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    wanted = ", ".join(LABELS)
    if unknown := sorted(found - set(LABELS)):
        raise DataError(
            f"The {role} folder {str(folder)!r} holds {_listed(unknown)}, which is no label: "
            f"rename or remove it; the labels are {wanted}."
        )
    if missing := [name for name in LABELS if name not in found]:
        raise DataError(f"The {role} folder {str(folder)!r} has no folder {_listed(missing)}: it must hold {wanted}.")


def _is_candidate(path: Path, folder: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"Cannot read {str(path)!r} ({error.strerror}): mend or remove it.") from error


def once_each(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture], list[Picture]]:
    """Keep each content once: (kept, repeated, contradictory).

    The same bytes under one label are kept once, so that no picture is both fitted on and held out; the same
    bytes under two labels are evidence for neither and all taken out.
    """
    labels_of: dict[str, set[int]] = defaultdict(set)
    for picture in pictures:
        labels_of[picture.sha256].add(picture.label)
    kept, repeated, contradictory = [], [], []
    seen: set[str] = set()
    for picture in pictures:
        if len(labels_of[picture.sha256]) > 1:
            contradictory.append(picture)
        elif picture.sha256 in seen:
            repeated.append(picture)
        else:
            seen.add(picture.sha256)
            kept.append(picture)
    return kept, repeated, contradictory


def without_leaks(train: Iterable[Picture], test: Iterable[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Split `test` into (pictures unknown to `train`, pictures whose bytes are in `train` too)."""
    known = {picture.sha256 for picture in train}
    kept: list[Picture] = []
    leaked: list[Picture] = []
    for picture in test:
        (leaked if picture.sha256 in known else kept).append(picture)
    return kept, leaked


def split(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Split training pictures into (to fit on, held out), label by label, by the hash of the content ID.

    The hash makes the split the same in every run and independent of the order of files, and new pictures
    move few old ones across. Raises DataError where a label has fewer than MIN_TRAIN_PER_LABEL.
    """
    fitted, held_out = [], []
    for label, name in enumerate(LABELS):
        members = [picture for picture in pictures if picture.label == label]
        if len(members) < MIN_TRAIN_PER_LABEL:
            raise DataError(
                f"There are {len(members)} usable training pictures of {name!r}, too few to hold some out: "
                f"supply at least {MIN_TRAIN_PER_LABEL}."
            )
        members.sort(key=lambda picture: (_hash(picture.content_id), picture.sha256))
        cut = max(1, round(HOLDOUT_SHARE * len(members)))
        held_out += members[:cut]
        fitted += members[cut:]
    return fitted, held_out


def _hash(content_id: str) -> str:
    return hashlib.sha256(content_id.encode("utf-8", "surrogateescape")).hexdigest()


def check_enough(fitted_on: Sequence[Picture], held_out: Sequence[Picture]) -> None:
    """Raise DataError unless each label has two readable pictures to fit on and one held out."""
    fitted, held = counts(fitted_on), counts(held_out)
    for name in LABELS:
        if fitted[name] < 2 or held[name] < 1:
            raise DataError(
                f"Only {fitted[name] + held[name]} training pictures of {name!r} can be read: "
                f"supply at least {MIN_TRAIN_PER_LABEL} that can."
            )


def check_held_out(pictures: Sequence[Picture]) -> None:
    """Raise DataError where near-duplicates of pictures fitted on have taken a label's last held-out picture."""
    if missing := [name for name, count in counts(pictures).items() if count == 0]:
        raise DataError(
            f"Every held-out picture of {_listed(missing)} looks like one that is fitted on: supply training pictures "
            "that differ from one another."
        )


def check_test(pictures: Sequence[Picture]) -> None:
    """Raise DataError where a label has no test picture left."""
    counted = counts(pictures)
    if missing := [name for name, count in counted.items() if count == 0]:
        raise DataError(
            f"No usable test picture of {_listed(missing)} is left: supply some that are not in the training folder."
        )


def digest(pictures: Iterable[Picture]) -> str:
    """SHA-256 over the sorted (label, SHA-256 of the bytes) pairs: the same pictures, wherever they lie."""
    lines = sorted(f"{LABELS[picture.label]} {picture.sha256}\n" for picture in pictures)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def counts(pictures: Iterable[Picture]) -> dict[str, int]:
    """Number of pictures by label name, every label named."""
    counted = Counter(picture.label for picture in pictures)
    return {name: counted[label] for label, name in enumerate(LABELS)}


def listing(names: Sequence[str]) -> str:
    """Name the first LISTED_AT_MOST, quoted, and count the rest."""
    more = len(names) - LISTED_AT_MOST
    return _listed(names[:LISTED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
