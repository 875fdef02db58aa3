"""The watchdog over forward passes, on a clock of the test's own."""

from worker.watchdog import Watchdog


class Hours:
    """A clock, and whoever looks at the device by it."""

    def __init__(self, most_s: float) -> None:
        self.now = 1000.0
        self._watchdog = Watchdog(most_s, lambda: self.now)

    def look(self, since: float | None, after_s: float) -> bool:
        """Whether the batch begun at `since` is overdue `after_s` later."""
        self.now += after_s
        return self._watchdog.overdue(since)


def test_a_pass_that_does_not_end_is_overdue() -> None:
    """After its time, not before; the next batch begins anew, and nothing in work is never overdue."""
    hours = Hours(60.0)
    since = hours.now
    assert [hours.look(since, 1.0) for _ in range(61)] == [False] * 60 + [True]
    assert not hours.look(hours.now, 0.5)
    assert not hours.look(None, 1.0) and not hours.look(None, 100.0)


def test_a_pause_of_the_process_is_not_counted() -> None:
    """Neither in a batch seen before nor in one begun since the last look; what hangs after it is found still."""
    hours = Hours(60.0)
    since = hours.now
    assert not hours.look(since, 1.0) and not hours.look(since, 3600.0)
    assert not hours.look(hours.now + 0.2, 500.0)
    since = hours.now
    looks = [hours.look(since, 1.0) for _ in range(61)]
    assert looks == [False] * 60 + [True]


def test_a_redis_that_does_not_answer_delays_looks_and_forgives_nothing() -> None:
    """Each look may come a time-out late: that is no pause."""
    hours = Hours(60.0)
    since = hours.now
    assert [hours.look(since, 6.5) for _ in range(10)] == [False] * 9 + [True]
