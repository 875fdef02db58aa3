"""The tiny app in a process that dies at a named point of the line, when it has passed it a few times.

`MODERATION_FAIL_POINT` names the point, `MODERATION_FAIL_PASSES` says how often it is passed first, and
`MODERATION_FAIL_SIGNAL` what strikes there (KILL; STOP stands still until somebody sends SIGCONT). The worker itself
knows nothing of all this: the calls of its parts are wrapped here, before Celery starts it.
"""

import functools
import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import redis

from tests.support.tiny_app import app
from worker import bus, corrections
from worker.batcher import Batcher
from worker.classifier import Classifier
from worker.decode import DecoderPool
from worker.fetch import FetchPool
from worker.intake import Intake
from worker.overrule import Overruler
from worker.publish import Publisher

SAID = "fail point reached: "


def _always(arguments: Any, result: Any) -> bool:
    return True


def _something(arguments: Any, result: Any) -> bool:
    return bool(result)


def _given(arguments: Any, result: Any) -> bool:
    return bool(arguments[1])


def _dropped(arguments: Any, result: Any) -> bool:
    return len(result) < len(arguments[1])


def _several(arguments: Any, result: Any) -> bool:
    return len(arguments[1]) > 1


def _publishing(arguments: Any, result: Any) -> bool:
    """EVALSHA, digest, number of keys, and the first key: only the publish script's is the verdict stream."""
    return arguments[1] == "EVALSHA" and arguments[4] == bus.VERDICTS


def _swapped(arguments: Any, result: Any) -> bool:
    return getattr(arguments[0], "_served_before", False)


@dataclass(frozen=True)
class Point:
    """Where: before or after `owner.name` is called, or when half of the list it is given has gone through it.

    `counts` is asked with (arguments, result) whether this pass is one.
    """

    owner: Any
    name: str
    when: Literal["before", "halfway", "after"]
    counts: Callable[[Any, Any], bool] = _always


POINTS = {
    "claimed, not handed on": Point(Intake, "read", "after", _something),
    "a known ID dropped": Point(Intake, "without_known", "after", _dropped),
    "handed on, not fetched": Point(FetchPool, "submit", "before"),
    "fetched, not decoded": Point(DecoderPool, "submit", "before"),
    "decoded, not scored": Point(Batcher, "submit", "before"),
    "scored, not published": Point(Publisher, "publish", "before"),
    "half of a batch published": Point(Publisher, "publish", "halfway", _several),
    "published, the answer not read": Point(redis.connection.Connection, "send_command", "after", _publishing),
    "published, the answer not heeded": Point(Publisher, "publish", "after"),
    "to be put aside": Point(Intake, "postpone", "before"),
    "put aside": Point(Intake, "postpone", "after"),
    "woken": Point(Intake, "wake_due", "after", _something),
    "taken over, not handed on": Point(Intake, "take_over", "after", _something),
    "marked alone, not judged": Point(Intake, "mark_alone", "after"),
    "draining, nothing given back": Point(Intake, "give_back", "before", _given),
    "drained, all given back": Point(Intake, "give_back", "after", _given),
    "correction read, not applied": Point(corrections, "parse", "after"),
    "correction applied": Point(Overruler, "apply_waiting", "after", _something),
    "new champion loaded": Point(Classifier, "load", "after", _swapped),
}
"""Every row of DESIGN.md's table of crash points that a worker can die at, and the steps between."""


def _strike(what: str) -> None:
    os.write(2, f"{SAID}{what}\n".encode())
    os.kill(os.getpid(), getattr(signal, f"SIG{os.environ.get('MODERATION_FAIL_SIGNAL', 'KILL')}"))


def _arm(what: str, passes: int) -> None:
    point = POINTS[what]
    original = getattr(point.owner, point.name)
    passed = itertools.count()

    def now(arguments: Any, result: Any) -> bool:
        return point.counts(arguments, result) and next(passed) == passes

    @functools.wraps(original)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if point.when != "after" and now(arguments, None):
            if point.when == "halfway":
                owner, batch = arguments
                original(owner, batch[: len(batch) // 2])
            _strike(what)
        result = original(*arguments, **named)
        if point.when == "after" and now(arguments, result):
            _strike(what)
        if point.owner is Classifier:
            arguments[0]._served_before = True
        return result

    setattr(point.owner, point.name, wrapped)


if what := os.environ.get("MODERATION_FAIL_POINT"):
    _arm(what, int(os.environ.get("MODERATION_FAIL_PASSES", "0")))

__all__ = ["POINTS", "SAID", "app"]
