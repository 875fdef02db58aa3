"""Follows the store's champion: what it names is in service within seconds, or refused with one log line.

A version ID goes in, a loaded classifier comes out. Knows no pictures and no queues.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from worker.classifier import Classifier
from worker.errors import ModerationError, UnavailableError, WeightsError
from worker.metrics import Metrics
from worker.model import devices
from worker.model.devices import OutOfDeviceMemoryError
from worker.model.reference import expected
from worker.model.weights import WeightsStore

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0

PAUSE_MAX_S: Final = 60.0
"""Between attempts at a champion that does not fit into the device's memory: each reads it whole from the store."""


class ChampionFollower:
    """One thread that looks at the champion file; loading happens there, beside the scoring.

    Args:
        closing_s: how long a stop waits for the thread.
        on_broken: told where the device is broken, or hangs at a stop: only a new process gets it back.
    """

    def __init__(
        self,
        store: WeightsStore,
        classifier: Classifier,
        metrics: Metrics,
        *,
        closing_s: float = 15.0,
        on_broken: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._store = store
        self._classifier = classifier
        self._metrics = metrics
        self._closing_s = closing_s
        self._on_broken = on_broken
        self._refused: str | None = None
        self._without_room: str | None = None
        self._pause_s = 0.0
        self._again_at = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="champion", daemon=True)

    def start(self) -> None:
        """Loads the champion, then follows it. Raises WeightsError where there is none, or it cannot be served, and
        OutOfDeviceMemoryError where it does not fit."""
        champion = self._store.champion()
        if champion is None:
            raise WeightsError(
                f"There is no champion in the weights store {self._store.root}: make one with "
                "`moderation-trainer fit`, or set MODERATION_WEIGHTS_DIR."
            )
        self._load(champion)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; one that does not end is reported to `on_broken`."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(self._closing_s)
        if self._thread.is_alive():
            self._on_broken(UnavailableError(f"a champion is still being loaded {self._closing_s:g} s after the stop"))

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                self._look()
            except Exception as error:
                # Never fatal: the version in service goes on, and the store may be mended.
                self._refuse(str(error) if isinstance(error, ModerationError) else repr(error))
                of_the_device = isinstance(error, RuntimeError | OutOfDeviceMemoryError)
                broken = devices.sticky_error(self._classifier.device) if of_the_device else None
                if broken is not None:  # while nothing is judged, nobody else would notice
                    self._on_broken(broken)

    def _look(self) -> None:
        champion = self._store.champion()
        serving = self._classifier.version
        if champion is None:
            self._refuse(f"{self._store.root} names no champion any more")
        elif serving is not None and champion == serving.id:
            self._accept()
        elif champion != self._without_room or time.monotonic() >= self._again_at:
            self._load(champion)

    def _load(self, version_id: str) -> None:
        try:
            version = self._classifier.load(version_id)
        except OutOfDeviceMemoryError:
            self._pause_s = min(PAUSE_MAX_S, 2 * self._pause_s) if version_id == self._without_room else LOOK_EVERY_S
            self._without_room, self._again_at = version_id, time.monotonic() + self._pause_s
            raise
        self._accept()
        self._metrics.serving(version.id, version.engine, expected(version.manifest.metrics))
        logger.info("serving %s with %s", version.id, version.engine)

    def _accept(self) -> None:
        self._refused = self._without_room = None
        self._metrics.champion_refused.set(0)

    def _refuse(self, why: str) -> None:
        self._metrics.champion_refused.set(1)
        if why != self._refused:  # said once, not every second
            self._refused = why
            self._metrics.loads.labels("refused").inc()
            serving = self._classifier.version
            logger.error("champion refused, %s stays in service: %s", serving.id if serving else "nothing", why)
