"""Where the pictures of a growing data set lie: by content ID, and which of them hold the same bytes.

    <data>/{train,test}/interim/<label>/<content_id>.<ext>

Moves them, one rename at a time. Knows no decisions, content stores or decoders.
"""

import contextlib
import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from worker.model import files
from worker.model.labels import LABELS


@dataclass(frozen=True)
class Spot:
    """Where a picture lies: `part` is `train` or `test`."""

    part: str
    label: str
    path: Path


def label_folders(data: Path, part: str) -> Path:
    """The folder that holds the label folders of `train` or `test`."""
    return data / part / "interim"


class Spots:
    """What lies in `data` when this is made, and since; whoever makes it holds the data set's lock, so that nobody else
    writes here, and what a killed run left half-written is removed."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._of: dict[str, list[Spot]] = {}
        self._ids_of_size: dict[int, set[str]] = {}
        for path in data.glob(".*.tmp"):
            path.unlink(missing_ok=True)
        for part in ("train", "test"):
            for label in LABELS:
                (label_folders(data, part) / label).mkdir(parents=True, exist_ok=True)
                self._index(part, label)

    def of(self, content_id: str) -> list[Spot]:
        """Where that picture lies; in more than one place only where somebody put it there by hand."""
        return self._of.get(content_id, [])

    def move(self, content_id: str, spot: Spot, to: Spot) -> None:
        """From one of its spots to another, which is then the only one."""
        _move(spot.path, to.path)
        self.only(content_id, to)

    def only(self, content_id: str, spot: Spot) -> None:
        """Every other file of that ID goes, once its new place is on disk."""
        for other in self._of.get(content_id, []):
            if other.path != spot.path:
                other.path.unlink(missing_ok=True)
        self._of[content_id] = [spot]
        self._note_size(content_id, spot)

    def drop(self, content_id: str) -> None:
        """Every file of that ID leaves the set."""
        for spot in self._of.pop(content_id, []):
            spot.path.unlink(missing_ok=True)
            files.sync_folder(spot.path.parent)

    def contradicted(self, content_id: str) -> bool:
        """Whether the bytes of `content_id` lie under another ID, and there under another label."""
        own = self._of[content_id][0]
        digest, like = sha256(own.path), self._ids_of_size.get(own.path.stat().st_size, set()) - {content_id}
        others = (spot for other in like for spot in self.of(other))
        return any(spot.label != own.label and sha256(spot.path) == digest for spot in others)

    def label_same_bytes(self, content_id: str, label: str) -> int:
        """The bytes of `content_id` under other IDs move to `label`, each in its own part; returns how many did."""
        path = self._of[content_id][0].path
        digest, moved = sha256(path), 0
        for other in sorted(self._ids_of_size.get(path.stat().st_size, ())):
            spots = self.of(other)
            for at, spot in enumerate(spots):
                if spot.label == label or sha256(spot.path) != digest:
                    continue
                target = label_folders(self._data, spot.part) / label / spot.path.name
                if not target.exists():  # made by hand, one name may stand for two pictures: neither is lost
                    _move(spot.path, target)
                    spots[at] = Spot(spot.part, label, target)
                    moved += 1
        return moved

    def _note_size(self, content_id: str, spot: Spot) -> None:
        """Only files of one size can hold the same bytes. An ID stays noted under sizes that it had before."""
        with contextlib.suppress(FileNotFoundError):
            self._ids_of_size.setdefault(spot.path.stat().st_size, set()).add(content_id)

    def _index(self, part: str, label: str) -> None:
        folder = label_folders(self._data, part) / label
        for at, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(at, name)
                if name.startswith(".") and name.endswith(".tmp"):
                    path.unlink(missing_ok=True)
                elif not name.startswith("."):
                    spot = Spot(part, label, path)
                    self._of.setdefault(path.stem, []).append(spot)
                    self._note_size(path.stem, spot)


def _move(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        files.replace(target, source.read_bytes())  # a label's folder may lie on a file system of its own
        source.unlink()
    for folder in {source.parent, target.parent}:
        files.sync_folder(folder)


def sha256(path: Path) -> str | None:
    """Of a file's bytes; None where it is not there."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return None
