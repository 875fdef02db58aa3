"""Fetches many objects side by side, in threads that may hang: content IDs in, bytes or a ContentError out.

Knows no queues or pictures; how one object is read is `content`. A file system's call may never return (a stalled
network mount), and nothing can end a thread: such a fetch is given up, its thread counted, and neither keeps the
process from stopping, for which the threads are daemons and not an executor's, which Python waits for at its end.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from worker.errors import ContentError

logger = logging.getLogger(__name__)

# What may wait for a decoder before fetching pauses: over a thousand usual pictures, but only a dozen of the largest,
# of which all that may be in work would fill gigabytes.
MOST_HELD_BYTES = 256 * 2**20

Fetched = Callable[[bytes | ContentError, float], None]
"""Told what came, and the seconds it took."""


@dataclass(eq=False, slots=True)
class _Fetch:
    content_id: str
    done: Fetched
    started: float = 0.0


class FetchPool:
    """A fixed number of threads.

    Args:
        fetch: a content ID to its bytes; raises ContentError.
        threads: how many fetch at the same time.
        most_held_bytes: while so much was fetched and not let go, no thread takes another fetch after its own. So one
            picture may be larger, and each thread may add one.
    """

    def __init__(self, fetch: Callable[[str], bytes], threads: int, *, most_held_bytes: int = MOST_HELD_BYTES) -> None:
        self._fetch = fetch
        self._threads = threads
        self._queue: queue.SimpleQueue[_Fetch | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._most_held_bytes = most_held_bytes
        self._held_bytes = 0
        self._closing = False
        self._let_go = threading.Condition(self._lock)
        self._running: set[_Fetch] = set()
        self._hung: set[_Fetch] = set()
        for number in range(threads):
            threading.Thread(target=self._run, name=f"fetch-{number}", daemon=True).start()

    def submit(self, content_id: str, done: Fetched) -> None:
        """Queues one fetch; `done` is called once, in some thread, and must not raise.

        The bytes it is given count as held until `let_go`.
        """
        self._queue.put(_Fetch(content_id, done))

    def let_go(self, size: int) -> None:
        """Says that so many fetched bytes are not needed any more."""
        with self._lock:
            self._held_bytes -= size
            self._let_go.notify_all()

    def give_up(self, after_s: float) -> None:
        """Ends every fetch that has run for longer with `fetch_failed`; call about once a second."""
        now = time.monotonic()
        with self._lock:
            overdue = [fetch for fetch in self._running if now - fetch.started > after_s]
            self._running.difference_update(overdue)
            self._hung.update(overdue)
        for fetch in overdue:
            logger.error("the fetch of %s hangs and is given up after %g s", fetch.content_id, after_s)
            fetch.done(ContentError("fetch_failed", f"It did not end within {after_s:g} s."), now - fetch.started)

    def running_for(self, at_least_s: float) -> int:
        """How many fetches have run for so long already."""
        since = time.monotonic() - at_least_s
        with self._lock:
            return sum(fetch.started <= since for fetch in self._running)

    def all_hang(self) -> bool:
        """Whether every thread is stuck in a fetch that was given up: nothing can be fetched any more."""
        with self._lock:
            return len(self._hung) >= self._threads

    def close(self) -> None:
        """Ends the threads once they have nothing in work; waits for none."""
        with self._lock:
            self._closing = True
            self._let_go.notify_all()
        for _ in range(self._threads):
            self._queue.put(None)

    def _run(self) -> None:
        # What still waits at a close is nobody's any more, and stands before the word to end.
        while (fetch := self._queue.get()) is not None and not self._closing:
            self._serve(fetch)
            self._wait_for_room()  # before the next is taken: what is in the queue neither runs nor hangs

    def _wait_for_room(self) -> None:
        with self._lock:
            self._let_go.wait_for(lambda: self._held_bytes < self._most_held_bytes or self._closing)

    def _serve(self, fetch: _Fetch) -> None:
        fetch.started = time.monotonic()
        with self._lock:
            again = any(hung.content_id == fetch.content_id for hung in self._hung)
            if not again:
                self._running.add(fetch)
        if again:  # it would only take one more thread
            fetch.done(ContentError("fetch_failed", "The fetch before has not ended yet."), 0.0)
            return
        result = self._result(fetch)
        with self._lock:
            given_up = fetch in self._hung
            self._running.discard(fetch)
            self._hung.discard(fetch)
            if not given_up and not isinstance(result, ContentError):
                self._held_bytes += len(result)
        if not given_up:
            fetch.done(result, time.monotonic() - fetch.started)

    def _result(self, fetch: _Fetch) -> bytes | ContentError:
        try:
            return self._fetch(fetch.content_id)
        except ContentError as error:
            return error
        except Exception as error:  # this thread has others to fetch
            logger.exception("fetching %s failed", fetch.content_id)
            return ContentError("fetch_failed", f"The fetch failed: {type(error).__name__}.")
