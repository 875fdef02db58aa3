"""Suspects: entries that were in work when a process died. Each is judged with nothing else in the process.

Entries that `puller` claimed go through here to the pipeline, one at a time and by turns with all others. A mark in
Redis says meanwhile who judges: a death then names its cause. Knows neither streams nor how entries are claimed.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from worker.entry import MOST_BROKEN_DEVICES, MOST_DEATHS_ALONE, Entry
from worker.errors import ModerationError
from worker.intake import Intake
from worker.metrics import Metrics
from worker.pipeline import Pipeline

# How long a suspect waits for the process to be empty before others get another turn.
PATIENCE_S = 10.0


class Suspects:
    """Of one process, for the thread that pulls. Methods raise UnavailableError where Redis does not answer."""

    def __init__(self, intake: Intake, pipeline: Pipeline, metrics: Metrics) -> None:
        self._intake = intake
        self._pipeline = pipeline
        self._metrics = metrics
        self._waiting: deque[Entry] = deque()
        self._alone: Entry | None = None
        self._marking: Entry | None = None
        self._others_turn = False
        self._others_had_turn = time.monotonic()

    @property
    def waiting(self) -> tuple[Entry, ...]:
        """Those whose turn is still to come."""
        return tuple(self._waiting)

    @property
    def one_is_judged(self) -> bool:
        """Whether one of them has the process to itself."""
        return self._alone is not None

    def add(self, entries: Iterable[Entry]) -> None:
        """Lets these wait for their turn."""
        self._waiting.extend(entries)

    def step(self, longest_s: float) -> bool:
        """Goes on with the one that is judged, or begins with the next; waits up to `longest_s` for an empty process.

        False where there is none, or it is the turn of others.
        """
        if self._alone is not None:
            if self._pipeline.wait_until(self._idle, longest_s):
                # This process lives, whatever became of the picture; only a death leaves the mark.
                self._intake.unmark_alone(self._alone)
                self._alone = None
                self._others_turn = True
            return True
        if not self._waiting or self._others_turn:
            return False
        if self._pipeline.wait_until(self._idle, longest_s):
            self._judge_alone()
        elif time.monotonic() - self._others_had_turn > PATIENCE_S:
            self._others_turn = True
        return True

    def end_turn_of_others(self, claimed: bool) -> None:
        """It is theirs again; patience begins anew only where the others could claim in their turn."""
        self._others_turn = False
        if claimed:
            self._others_had_turn = time.monotonic()

    def stop(self) -> None:
        """Takes the mark back, where Redis answers: a clean stop is no death, nor the device's, should it end in one.

        Not of what was judged alone, nor of what was about to be, for which Redis may have taken the mark and the
        answer may have been lost.
        """
        marked = self._alone or self._marking
        if marked is not None:
            with contextlib.suppress(ModerationError):
                self._intake.unmark_alone(marked)
            self._alone = self._marking = None

    def blame_device(self) -> None:
        """Says that this process ends because its device broke: the picture judged alone has not killed it."""
        alone = self._alone  # another thread may ask
        if alone is not None:
            self._intake.blame_device(alone)

    def _idle(self) -> bool:
        return not self._pipeline.in_work()

    def _next(self) -> Entry:
        """The first, uploads before backfill."""
        return next((entry for entry in self._waiting if not entry.backfill), self._waiting[0])

    def _judge_alone(self) -> None:
        entry = self._marking or self._next()  # the first: Redis may have taken its mark already
        if self._marking is None and not self._intake.without_known([entry]):
            self._waiting.remove(entry)  # judged meanwhile, by a process that was only away, most likely
            self._metrics.duplicates.inc()
            return
        self._marking = entry
        deaths, broken_devices = fates = self._intake.mark_alone(entry)
        self._waiting.remove(entry)
        entry = replace(entry, fates=fates)  # which go with it where it is postponed
        self._alone, self._marking = entry, None
        if deaths >= MOST_DEATHS_ALONE:
            self._pipeline.condemn(entry, f"{deaths} processes died while they judged nothing else.")
        elif broken_devices >= MOST_BROKEN_DEVICES:
            self._pipeline.condemn(entry, f"{broken_devices} processes had their device break on it alone.")
        else:
            self._pipeline.accept([entry])
