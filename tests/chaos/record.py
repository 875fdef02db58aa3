"""What was submitted and what came out, written down apart from the service.

A `Notebook` is a file that a producer appends to: what it is about to submit, and what the server took. A `Witness`
reads the verdict stream on a connection of its own and appends every entry to a file. Neither knows workers, attacks
or what is right; `checks` compares them.
"""

import itertools
import json
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import redis

STREAM = "moderation:verdicts"
ASK_AGAIN_S = 0.5


class Notebook:
    """An append-only file; a line that was written outlives the process that wrote it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def intended(self, ids: Iterable[str]) -> None:
        """Notes what is about to be submitted."""
        self._write("?", ids)

    def acknowledged(self, ids: Iterable[str]) -> None:
        """Notes what the server took: from here on none of these may be lost."""
        self._write("!", ids)

    def _write(self, mark: str, ids: Iterable[str]) -> None:
        os.write(self._file, "".join(f"{mark}{content_id}\n" for content_id in ids).encode())

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def noted(paths: Iterable[Path]) -> tuple[set[str], set[str]]:
    """What all notebooks together say was intended, and what was taken. A line that a kill cut short is left out."""
    intended, taken = set(), set()
    for path in paths:
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                (taken if line[0] == "!" else intended).add(line[1:-1])
    return intended, taken


@dataclass(frozen=True, slots=True)
class Copy:
    """Whose bytes a content ID has, and whether a person's decision on them was in force before it was submitted."""

    original: str
    known: bool


@dataclass(frozen=True, slots=True)
class Told:
    """What was said to the service, by those who said it.

    Attributes:
        intended: what was to be submitted; the server may or may not have taken it.
        taken: what it took.
        decided: people's decisions that the server took, in order, by content ID.
        unsure: content IDs with a decision that it may have taken.
        rewritten: what the bytes now under a content ID deserve, for those that had others before.
        copies: content IDs that show the bytes of another.
    """

    intended: set[str]
    taken: set[str]
    decided: dict[str, list[str]] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    rewritten: dict[str, str] = field(default_factory=dict)
    copies: dict[str, Copy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the verdict stream: its ID, what its fields say, and the document."""

    id: str
    content_id: str
    ban: bool
    document: dict[str, Any]

    @property
    def at_s(self) -> float:
        """When it was written, on the server's clock."""
        return self.place[0] / 1000

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in the stream, to be compared with another's: what stands before it was done before it."""
        ms, _, number = self.id.partition("-")
        return int(ms), int(number)

    @property
    def submitted_s(self) -> float:
        """When its content ID went into the intake, on the server's clock."""
        return datetime.fromisoformat(self.document["enqueued_at"]).timestamp()

    @property
    def by_model(self) -> bool:
        """Whether a model judged; a person's decision, on the ID or on the same bytes, names no weights."""
        return self.document["weights"] is not None


def parse(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    """Reads an entry as any other program would."""
    document = json.loads(fields[b"verdict"])
    return Entry(entry_id.decode(), fields[b"content_id"].decode(), fields[b"ban"] == b"1", document)


class Witness:
    """A thread that reads the verdict stream, whatever becomes of the server, and writes it down."""

    def __init__(self, url: str, path: Path) -> None:
        # The server's own pause is no reason to give up; each read is a fresh attempt.
        self._redis = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2)
        self._path = path
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self.entries: list[Entry] = []
        self.judged: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)
        self._thread.start()

    def wait_for(self, reached: Callable[[], object], timeout_s: float) -> bool:
        """Waits until `reached()`; whether it came to that.

        It is asked after every read that brought something, and at times without: the last of the work may leave no
        verdict, as what had one already does.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not (done := bool(reached())) and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left_s, ASK_AGAIN_S))
            return done

    def first(self, which: Callable[[Entry], bool], after_s: float) -> Entry | None:
        """The first such entry among those written after the moment."""
        start = bisect_right(self.entries, after_s, key=lambda entry: entry.at_s)
        return next((entry for entry in itertools.islice(self.entries, start, None) if which(entry)), None)

    def close(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        self._thread.join()
        self._redis.close()

    def _run(self) -> None:
        after = "0"
        with self._path.open("a") as file:
            while not self._stopping.is_set():
                try:
                    reply: Any = self._redis.xread({STREAM: after}, count=1000, block=200)
                except redis.exceptions.RedisError:
                    self._stopping.wait(0.1)
                    continue
                read = [parse(entry_id, fields) for entry_id, fields in reply[0][1]] if reply else []
                if read:
                    after = read[-1].id
                    file.writelines(f"{time.time():.3f} {entry.id} {json.dumps(entry.document)}\n" for entry in read)
                    file.flush()
                    with self._changed:
                        self.entries += read
                        self.judged.update(entry.content_id for entry in read)
                        self._changed.notify_all()
