"""Fetching side by side: how much of what was fetched may lie in memory."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY
from worker.errors import ContentError
from worker.fetch import FetchPool

MOST, SIZE = 100, 60


class Fetching:
    """One thread; what was held when each fetch began, and what came of it."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.held: list[int] = []
        self.came: list[bytes | ContentError] = []
        self.pool = FetchPool(self._fetch, 1, most_held_bytes=MOST)

    def _fetch(self, content_id: str) -> bytes:
        self.held.append(self.pool._held_bytes)
        if content_id == "missing":
            raise ContentError("not_found", "The content store has no such object.")
        return bytes(self.sizes.get(content_id, SIZE))

    def submit(self, content_id: str) -> None:
        """One more."""
        self.pool.submit(content_id, lambda result, seconds: self.came.append(result))


@pytest.fixture
def fetching() -> Iterator[Fetching]:
    """Room for less than two."""
    made = Fetching()
    yield made
    made.pool.close()


def test_no_fetch_begins_while_too_much_is_held(fetching: Fetching) -> None:
    """Each begins below the bound, whatever waits in the queue; all come, as others are let go."""
    for number in range(10):
        fetching.submit(f"c{number}")
    for number in range(1, 11):
        wait_until(lambda number=number: len(fetching.came) >= number, f"picture {number}")
        fetching.pool.let_go(SIZE)
    assert len(fetching.held) == 10
    assert max(fetching.held) < MOST, fetching.held


def test_a_picture_larger_than_the_bound_comes_alone(fetching: Fetching) -> None:
    """And keeps others waiting only while it is held. One that failed holds nothing."""
    fetching.sizes["large"] = 5 * MOST
    for content_id in ("missing", "large", "small"):
        fetching.submit(content_id)
    wait_until(lambda: len(fetching.came) == 2, "the large one")
    fetching.pool.let_go(5 * MOST)
    wait_until(lambda: len(fetching.came) == 3, "the small one")
    assert fetching.held == [0, 0, 0]


def test_threads_that_wait_for_room_end_when_closed(fetching: Fetching) -> None:
    """What is held is never let go in a process that stops."""
    fetching.sizes["large"] = 5 * MOST
    fetching.submit("large")
    wait_until(lambda: len(fetching.came) == 1, "it")
    fetching.pool.close()
    fetching.submit("behind the end")
    wait_until(lambda: fetching.pool._queue.qsize() == 1, "the thread to take what ends it")
    assert len(fetching.came) == 1


def test_what_waits_at_a_close_is_not_fetched(fetching: Fetching) -> None:
    """Its claims were given back by then; read all at once, it could fill the memory that the bound keeps free."""
    for number in range(10):
        fetching.submit(f"c{number}")
    wait_until(lambda: len(fetching.came) == 2, "as much as there is room for")
    fetching.pool.close()
    fetching.pool.let_go(2 * SIZE)
    alive = [thread for thread in threading.enumerate() if thread.name.startswith("fetch-")]
    for thread in alive:
        thread.join(30)
    assert len(fetching.came) == 2 and not any(thread.is_alive() for thread in alive)


class Hanging:
    """Two threads; whatever is named `hangs` ends only when it is told to."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.came: list[tuple[str, bytes | ContentError]] = []
        self.took_s: list[float] = []
        self.pool = FetchPool(self._fetch, 2, most_held_bytes=MOST)

    def _fetch(self, content_id: str) -> bytes:
        if content_id.startswith("hangs"):
            self.may_end.wait(60)
        if content_id == "fault":
            raise RuntimeError("of a content store's own")
        return bytes(2 * MOST)

    def submit(self, content_id: str) -> None:
        """One more."""
        self.pool.submit(content_id, lambda result, seconds: self._told(content_id, result, seconds))

    def _told(self, content_id: str, result: bytes | ContentError, seconds: float) -> None:
        self.took_s.append(seconds)
        self.came.append((content_id, result))

    def reasons(self) -> list[tuple[str, str | None]]:
        """What came of each, None where it was bytes."""
        return [(name, came.reason if isinstance(came, ContentError) else None) for name, came in self.came]


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    """What hangs is let go in the end."""
    made = Hanging()
    yield made
    made.may_end.set()
    made.pool.close()


def test_what_hangs_is_given_up_once_and_leaves_nothing_behind(hanging: Hanging) -> None:
    """Asked every second, its end is told a single time; what it brings at last is nobody's and takes no room."""
    hanging.submit("hangs")
    wait_until(lambda: hanging.pool.running_for(0) == 1, "it to begin")
    assert hanging.pool.running_for(3600) == 0
    hanging.pool.give_up(3600)
    assert hanging.came == []
    for _ in range(2):
        hanging.pool.give_up(0)
    assert hanging.reasons() == [("hangs", "fetch_failed")]
    assert hanging.pool.running_for(0) == 0 and not hanging.pool.all_hang()
    hanging.submit("hangs2")
    wait_until(lambda: hanging.pool.running_for(0) == 1, "the other thread to take it")
    hanging.pool.give_up(0)
    assert hanging.pool.all_hang(), "both threads are stuck"
    hanging.may_end.set()
    wait_until(lambda: not hanging.pool.all_hang(), "them to end")
    hanging.submit("small")
    wait_until(lambda: len(hanging.came) == 3, "the next, for which there is room")
    assert hanging.reasons() == [("hangs", "fetch_failed"), ("hangs2", "fetch_failed"), ("small", None)]
    assert min(hanging.took_s) > 0


def test_what_came_is_not_given_up_too(hanging: Hanging) -> None:
    """Its end would be told twice, and one that ended would count as standing still for ever."""
    for content_id in ("fault", "small"):
        hanging.submit(content_id)
        wait_until(lambda name=content_id: name in [came for came, _ in hanging.came], content_id)
    hanging.pool.give_up(0)
    assert hanging.pool.running_for(0) == 0
    assert hanging.reasons() == [("fault", "fetch_failed"), ("small", None)]


def test_a_fault_of_any_kind_is_a_failed_fetch(hanging: Hanging) -> None:
    """Which is tried for an hour, unlike a picture that is not there."""
    for content_id in ("fault", "fault", "fault", "small"):
        hanging.submit(content_id)
    wait_until(lambda: len(hanging.came) == 4, "all of them")
    assert sorted(hanging.reasons(), key=str) == [("fault", "fetch_failed")] * 3 + [("small", None)]


def test_a_picture_whose_fetch_hangs_takes_one_thread_only(hanging: Hanging) -> None:
    """Tried again it fails at once, and others are fetched meanwhile."""
    hanging.submit("hangs")
    wait_until(lambda: hanging.pool.running_for(0) == 1, "it to begin")
    hanging.pool.give_up(0)
    for content_id in ("hangs", "hangs", "other"):
        hanging.submit(content_id)
    wait_until(lambda: len(hanging.came) == 4, "the others")
    hanging.pool.give_up(0)
    assert hanging.pool.running_for(0) == 0
    assert hanging.reasons() == [("hangs", "fetch_failed")] * 3 + [("other", None)]


def test_a_fetch_that_hangs_keeps_no_process_from_ending() -> None:
    """Nothing can end it, and Python waits at its end for every thread that is no daemon."""
    program = (
        "import sys, threading; from worker.fetch import FetchPool; began = threading.Event();"
        "pool = FetchPool(lambda content_id: (began.set(), threading.Event().wait()), 2);"
        "pool.submit('any', print); began.wait(); pool.close()"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, timeout=60, check=False).returncode == 0
