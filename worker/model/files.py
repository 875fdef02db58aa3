"""Files under one root folder: opened only where they lie inside it, replaced and added in one step.

Knows nothing of weights. What goes wrong while reading ends here as a WeightsError with a sentence about the file.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Final

from worker.errors import UsageError, WeightsError

ABANDONED_S: Final = 3600.0


class AbsentError(WeightsError):
    """There is no such file."""


@contextlib.contextmanager
def open_inside(
    root: Path, relative: str, *, length: int | None = None, limit: int | None = None
) -> Iterator[BufferedReader]:
    """The file `relative` to `root`, open for reading, once it is seen to be what is expected.

    Raises WeightsError where it leads out of `root` through a link, is no ordinary file, or is not of `length`
    bytes or longer than `limit`; AbsentError where it is not there. An OSError while it is open becomes one too.
    """
    try:
        path = (root / relative).resolve(strict=True)
        if not path.is_relative_to(root.resolve()):
            raise WeightsError(f"{relative} is a link out of the store {root}: put the file itself there")
        # NONBLOCK: opening a named pipe would otherwise wait for its writer before anyone sees that it is one.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise WeightsError(f"{relative} in the store {root} is no ordinary file: put the file itself there")
            if length is not None and status.st_size != length:
                raise WeightsError(
                    f"{relative} has {status.st_size} bytes where {length} belong: copy it into the store again"
                )
            if limit is not None and status.st_size > limit:
                raise WeightsError(f"{relative} is longer than {limit} bytes: copy it into the store again")
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise AbsentError(f"{relative} is not in the store {root}: copy it there, or name another version") from None
    except (OSError, RuntimeError) as error:
        # RuntimeError: how Python before 3.13 reports a link that leads to itself.
        raise WeightsError(f"{relative} in the store {root} cannot be read ({error}): look at the file") from error


def folder_inside(root: Path, name: str) -> Path:
    """The folder `name` in `root`, made where it is missing. WeightsError where it is a link out of `root`."""
    folder = root / name
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        _readable_as(root, folder)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise WeightsError(f"{name} is a link out of the store {root}: put the folder itself there")
    return folder


def replace(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Puts `content` in the place of `path` in one step, on disk when this returns.

    `shared`: whoever may read the folder may read it, whatever the umask; a worker is often another user.
    """
    with temporary_in(path.parent) as temporary:
        _write(temporary, content)
        if shared:
            _readable_as(path.parent, temporary)
        os.replace(temporary, path)
    sync_folder(path.parent)


def add_folder(path: Path, files: Mapping[str, bytes], *, shared: bool = False) -> bool:
    """The folder `path` with `files` in it appears in one step, on disk when this returns True.

    False where something of that name is there already; then nothing changes. `shared` as for `replace`.
    """
    with temporary_in(path.parent) as temporary:
        temporary.mkdir()
        for name, content in files.items():
            _write(temporary / name, content)
        if shared:
            for made in (temporary, *(temporary / name for name in files)):
                _readable_as(path.parent, made)
        sync_folder(temporary)
        try:
            os.rename(temporary, path)
        except OSError:
            # A rename never replaces a folder that holds something.
            if os.path.lexists(path):
                return False
            raise
    sync_folder(path.parent)
    return True


def append_line(path: Path, line: bytes) -> None:
    """Adds one line of JSON to `path`, on disk when this returns. A last line that a crash cut short is dropped first,
    and one that only lacks its end, as editors leave it, gets that. Whoever may read the folder may read it."""
    with open(path, "ab+", opener=_no_link) as file:
        _readable_as(path.parent, path)
        file.seek(0)
        content = file.read()
        start = content.rfind(b"\n") + 1
        unended = _is_json(content[start:])
        if not unended:
            file.truncate(start)
        file.write(b"\n" * unended + line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def whole_lines(content: bytes) -> list[bytes]:
    """The lines of a file that `append_line` wrote, without their ends and without a last one that was cut short."""
    *lines, last = content.split(b"\n")
    return [*lines, last] if _is_json(last) else lines


def _is_json(line: bytes) -> bool:
    """Whether it is a whole JSON object, of which no beginning is one."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def sync_folder(folder: Path) -> None:
    """Waits until the names in `folder` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keeps other writers of `root` waiting; the system releases it where the holder dies. Errors as `usable`, and
    UsageError where there is no such folder: whoever names one by mistake is to find no empty one there afterwards."""
    if not os.path.lexists(root):
        raise UsageError(f"there is no weights store {root.absolute()}: name the one that workers serve from")
    with usable(root), open(root / ".lock", "ab", opener=_no_link) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def usable(root: Path) -> Iterator[None]:
    """An OSError inside, a full disk or a missing right, becomes a WeightsError about `root`."""
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"the store {root} cannot be used ({error}): look at its rights, links and free space"
        ) from error


@contextlib.contextmanager
def temporary_in(folder: Path) -> Iterator[Path]:
    """A free name in `folder` for a file or folder; what still bears it at the end is removed."""
    path = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        yield path
    finally:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Removes temporary names in `folder` that nobody has written to for ABANDONED_S, as far as that is possible."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime > time.time() - ABANDONED_S:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _readable_as(folder: Path, made: Path) -> None:
    """Adds the folder's rights to read, and takes none away, such as a group's that the folder hands down."""
    readable = 0o555 if made.is_dir() else 0o444
    with contextlib.suppress(PermissionError):  # it is somebody else's, who has seen to that
        made.chmod(stat.S_IMODE(made.stat().st_mode) | (folder.stat().st_mode & readable))


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
