"""Fetches a picture's bytes: content ID in, at most `max_bytes` bytes out.

Any fsspec URL can be the store. Knows no queues, pictures or verdicts; a fault here is always ContentError, with
`not_found` and `fetch_failed` for the caller to try again and `too_large` for good.
"""

import io
import os
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec.core

from worker.errors import ContentError, UndecidedReason, UsageError

# What a file system raises and what it means; the first class that fits decides. Whatever else comes out of a
# third party's file system is `fetch_failed` too: it will be tried again, and is never held against the picture.
TRANSLATIONS: tuple[tuple[type[BaseException], UndecidedReason, str], ...] = (
    (FileNotFoundError, "not_found", "The content store has no such object"),
    (IsADirectoryError, "not_found", "The content store has a folder in the object's place"),
    (NotADirectoryError, "not_found", "The content store has no such object"),
    (PermissionError, "fetch_failed", "The content store refuses access"),
    (TimeoutError, "fetch_failed", "The content store does not answer in time"),
    (OSError, "fetch_failed", "The content store cannot be read"),
    (Exception, "fetch_failed", "The content store failed"),
)


SMALLEST_READ_BYTES = 65536
S3 = ("s3", "s3a")


class ContentStore:
    """Reads objects from `url` with the ID put in; safe to use from many threads.

    Args:
        url: fsspec URL with `{content_id}` in it.
        max_bytes: a larger object is `too_large`; never more than one byte beyond is read.
        timeout_s: limit of one attempt over HTTP and S3 (others take theirs from `options`).
        options: fsspec storage options.

    Raises:
        UsageError: the scheme is unknown, its package is not installed, its options are wrong, or a local folder is
            not there.
    """

    def __init__(self, url: str, *, max_bytes: int, timeout_s: float, options: dict[str, Any] | None = None) -> None:
        self._max_bytes = max_bytes
        try:
            scheme = urlsplit(url).scheme
            self._fs, self._path = fsspec.core.url_to_fs(url, **_with_timeouts(scheme, timeout_s, options or {}))
        except ImportError as error:
            raise UsageError(f"MODERATION_CONTENT_URL needs a package that is not installed: {error}.") from None
        except Exception as error:  # a third party's constructor may raise anything, and may connect in it
            # Without the reason, which may quote a password out of the URL.
            raise UsageError(
                f"MODERATION_CONTENT_URL, or its options, cannot be used ({type(error).__name__}): look at both, with "
                "%XX for every special character of a password."
            ) from None
        if scheme in S3:
            self._fs.retries = 1  # its own attempts, five times five for a read, each as long as the time limit
        # Over HTTP the size may be unknown or untrue: stream, do not ask for ranges. A size that seems known spares
        # the look before each picture, which takes a request and makes every fault of the server a FileNotFoundError.
        self._open_options: dict[str, Any] = {"block_size": 0, "size": 1} if scheme in ("http", "https") else {}
        self._folder: Path | None = None
        if scheme in ("file", "local"):
            self._fs = None  # a file is opened directly: fsspec's own opener takes several times as long as the read
            self._folder = Path(self._path.partition("{content_id}")[0] + "x").parent
            if not os.path.isdir(self._folder):  # unlike Path's own, False also for a name that is too long
                raise UsageError(
                    f"The content folder {self._folder} is not there: create it, or set MODERATION_CONTENT_URL."
                )

    def fetch(self, content_id: str) -> bytes:
        """The object's bytes. Raises ContentError: `not_found`, `fetch_failed`, `too_large`."""
        try:
            data = self._read(self._path.replace("{content_id}", content_id))
        except Exception as error:
            if self._folder is not None and not os.path.isdir(self._folder):
                # No word on the picture: with its folder away each would be given up as not there within seconds.
                raise ContentError("fetch_failed", "The content folder is not there.") from error
            raise _translate(error) from error
        if len(data) > self._max_bytes:
            raise ContentError("too_large", f"The object is larger than {self._max_bytes} bytes.")
        return data

    def _read(self, path: str) -> bytes:
        if self._fs is None:
            with open(path, "rb", buffering=0) as local:
                # One read where its size is true; memory for the largest that is allowed is not asked for.
                at_once = max(SMALLEST_READ_BYTES, os.fstat(local.fileno()).st_size + 1)
                return _all(local, min(at_once, self._max_bytes + 1), self._max_bytes + 1)
        with self._fs.open(path, "rb", **self._open_options) as file:
            return _all(file, self._max_bytes + 1, self._max_bytes + 1)


def _translate(error: Exception) -> ContentError:
    reason, sentence = next((r, s) for foreign, r, s in TRANSLATIONS if isinstance(error, foreign))
    return ContentError(reason, f"{sentence} ({type(error).__name__}).")


def _all(file: IO[bytes] | io.FileIO, at_once: int, most: int) -> bytes:
    """Up to `most` bytes, `at_once` a call. A stream gives at once what has arrived, not what was asked for."""
    chunks = []
    while most > 0 and (chunk := file.read(min(at_once, most))):
        chunks.append(chunk)
        most -= len(chunk)
    return b"".join(chunks)


def _with_timeouts(scheme: str, timeout_s: float, options: dict[str, Any]) -> dict[str, Any]:
    """The options, and our time limits where they name no other."""
    limits: dict[str, Any]
    if scheme in ("http", "https"):
        import aiohttp

        name, limits = "client_kwargs", {"timeout": aiohttp.ClientTimeout(total=timeout_s)}
    elif scheme in S3:
        # One attempt: botocore's five, and its pauses, would hold a fetch thread while the intake tries again anyway.
        once = {"total_max_attempts": 1}
        name, limits = "config_kwargs", {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": once}
    else:
        return options
    return {**options, name: {**limits, **options.get(name, {})}}
