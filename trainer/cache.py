"""Features on disk, so that what frozen layers compute is computed once a picture, in whatever run.

    <folder>/<digest of the key>/key.json                    base, preprocessing, engine and cut, for people
    <folder>/<digest of the key>/<sha256>.safetensors        features of up to a few hundred pictures

Files are only ever added (temporary file, fsync, rename) and removed, so a run may be killed at any moment and any
number may share a folder; two that compute the same picture leave two copies, which harms nobody. A damaged file is
removed and its pictures are computed again. Raises CacheError for a folder that cannot be used or has no room.

Knows digests and arrays; nothing of how features are made or what they are for.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import torch

from trainer import shards
from trainer.errors import CacheError
from trainer.shards import Entry
from worker.model import files

FrameChoice = Literal["middle", "all"]
"""Which of a picture's frames: the middle one to fit on, all that the worker looks at to judge by."""

SCHEMA: Final = 4
"""Part of every key. To be raised whenever decoding, a network's code or the file's form changes what is stored."""

MAX_BYTES: Final = 10 * 2**30
"""What the whole folder may take between runs: 600,000 pictures of VGG-11 in float32."""


class FeatureCache:
    """The features under one key in `folder`; a context manager, which ends by keeping the folder's limit.

    `key` is JSON that names all that decides the values; `dtype` is what they are computed in. `say` is told
    what a person should know. Between runs the folder takes at most `max_bytes`: files unused for longest go
    first. A run may need more for itself, which is why its own files stay until it ends.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        dtype: torch.dtype,
        say: Callable[[str], None],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        text = json.dumps({"schema": SCHEMA} | dict(key), sort_keys=True)
        self.folder = folder
        self._mine = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._dtype = dtype
        self._say = say
        self._max_bytes = max_bytes
        self._where: dict[tuple[str, bool], tuple[Path, int]] = {}
        self._used: set[Path] = set()
        with self._usable():
            self._mine.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (self._mine / "key.json").exists():
                files.replace(self._mine / "key.json", f"{text}\n".encode())
            files.remove_abandoned(self._mine)
            for path in sorted(self._mine.glob("*.safetensors")):
                self._list(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        removed = self._make_room(0, keep=set())
        if removed & self._used:
            self._say(
                f"The feature cache {str(self.folder)!r} would be larger than its limit of "
                f"{self._max_bytes // 2**20:,} MB, so the next run computes some pictures again."
            )

    def frames(self, sha256: str, choice: FrameChoice) -> int:
        """How many frames of a picture are here for that choice; 0 where it has to be computed."""
        whole = self._where.get((sha256, True))
        if choice == "all":
            return whole[1] if whole else 0
        return 1 if whole or (sha256, False) in self._where else 0

    def hold(self, wanted: set[str]) -> None:
        """These pictures are to be read: what is computed meanwhile takes the room of others."""
        self._used |= {path for (sha256, _), (path, _) in self._where.items() if sha256 in wanted}

    def add(self, entries: Sequence[Entry]) -> None:
        """Keep computed pictures, on disk when this returns. Raises CacheError where that fails."""
        if not entries:
            return
        content = shards.pack(entries, self._dtype)
        path = self._mine / shards.name_of(content)
        self._make_room(len(content), keep=self._used)
        with self._usable():
            files.replace(path, content)
        self._used.add(path)
        for entry in entries:
            self._where[entry.sha256, entry.whole] = (path, len(entry.values))

    def read(self, wanted: set[str], choice: FrameChoice) -> Iterator[Entry]:
        """The entries of pictures that are here, one file at a time; for "middle" of the middle frame alone.

        What turns out to be damaged or gone is left out, and `frames` says 0 for it from then on.
        """
        by_file: dict[Path, set[str]] = {}
        for sha256 in wanted:
            found = self._where.get((sha256, True))
            if found is None and choice == "middle":
                found = self._where.get((sha256, False))
            if found:
                by_file.setdefault(found[0], set()).add(sha256)
        for path, digests in sorted(by_file.items()):
            for entry in self._verified(path):
                if entry.sha256 in digests and (entry.whole or choice == "middle"):
                    digests.discard(entry.sha256)
                    yield _middle(entry) if choice == "middle" else entry

    def _verified(self, path: Path) -> list[Entry]:
        try:
            entries = shards.read(path)
        except shards.DamagedError as error:
            self._discard(path, f"is damaged ({error})")
        except FileNotFoundError:
            self._discard(path, "is gone")
        except OSError as error:
            self._discard(path, f"cannot be read ({error.strerror})")
        else:
            self._used.add(path)
            with contextlib.suppress(OSError):  # the time of last use is a help, not a promise
                os.utime(path)
            return entries
        return []

    def _list(self, path: Path) -> None:
        try:
            for listed in shards.peek(path):
                self._where[listed.sha256, listed.whole] = (path, listed.frames)
        except shards.DamagedError as error:
            self._discard(path, f"is damaged ({error})")

    def _discard(self, path: Path, why: str) -> None:
        self._say(f"{path.name} in the feature cache {why}: it is removed, and its pictures are computed again.")
        self._where = {key: found for key, found in self._where.items() if found[0] != path}
        self._used.discard(path)
        with self._usable():
            path.unlink(missing_ok=True)

    def _make_room(self, length: int, keep: set[Path]) -> set[Path]:
        """Remove files unused for longest until `length` more bytes are within the limit; returns what was removed."""
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*/*.safetensors"):
            with contextlib.suppress(OSError):  # another run may remove it at the same time
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = length + sum(size for _, size, _ in found)
        removed = set()
        for _, size, path in sorted(found):
            if total <= self._max_bytes:
                break
            if path not in keep:
                with self._usable():
                    path.unlink(missing_ok=True)
                removed.add(path)
                total -= size
        if removed:
            self._where = {key: found for key, found in self._where.items() if found[0] not in removed}
        return removed

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CacheError(
                f"The feature cache {str(self.folder)!r} cannot be used ({error.strerror or error}): "
                "free space there or mend its rights, or name another folder with --cache."
            ) from error


def _middle(entry: Entry) -> Entry:
    at = (len(entry.values) - 1) // 2
    return Entry(entry.sha256, entry.values[at : at + 1], len(entry.values) == 1, entry.look, entry.facts)
