"""As `hanging_app`, with a tuner that wants the device between batches all the time."""

from tests.support.hanging_app import app
from worker.classifier import Version
from worker.tuner import Tuner


def _tune(self: Tuner, version: Version) -> None:
    while not self._stopping.is_set():
        self._between(lambda: 0.0)


Tuner.tune = _tune

__all__ = ["app"]
