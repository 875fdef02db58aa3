"""Pulls work: claims entries while the pipeline has room, keeps claims fresh, takes over what a dead process left.

Entries go from the intake to the pipeline. Knows no pictures and no Celery; `app` gives it a worker's life.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from worker import bus
from worker.entry import Entry
from worker.errors import ModerationError, UnavailableError
from worker.intake import DUE_AT_ONCE, Intake
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.suspects import Suspects

logger = logging.getLogger(__name__)

HOUSEKEEPING_S = 1.0
# Longer than Redis may keep it: after such a gap the whole process was paused, or the machine, or the clock was set.
PAUSED_S = 10.0
PRUNE_S = 600.0
# What a process that has judged nothing yet may hold: enough to fill its stages, little enough to leave the rest
# to others while it warms up.
FIRST_IN_WORK = 8
# A fetch should end by its own time limit; after this many of them it never will.
FETCH_DEADLINES = 3
# While so many wait for another attempt no backfill is claimed. Each that fails leaves its stream, so that whoever
# fills it sees room: in an outage of the content store all there is would move to where nothing bounds it.
MOST_POSTPONED_FOR_BACKFILL = 10_000
# What is due goes back in so many lots a second at most; between two of them the server answers others.
MOST_LOTS_DUE = 10
RECONNECT_PAUSES_S = (0.1, 0.2, 0.5, 1.0)


class Puller:
    """One thread.

    Args:
        max_batch: images in a forward pass.
        in_flight: batches that the device is given at a time; one more may be in work, to be decoded meanwhile.
        claim_deadline_s: a picture in work for longer is no longer kept from others.
        fetch_timeout_s: a fetch that has not ended after three of them is tried again later; after one where nothing
            else is judged meanwhile.
        takeover_idle_s: how long this process must have been connected and not paused before it takes from others.
        watch: called about once a second, whether Redis answers or not.
        on_housekeeping: called about once a second while it does.
    """

    def __init__(
        self,
        intake: Intake,
        pipeline: Pipeline,
        metrics: Metrics,
        *,
        max_batch: int,
        in_flight: int,
        claim_deadline_s: float,
        fetch_timeout_s: float,
        takeover_idle_s: float,
        watch: Callable[[], None],
        on_housekeeping: Callable[[], None],
    ) -> None:
        self._intake = intake
        self._pipeline = pipeline
        self._metrics = metrics
        self._most_in_work = (in_flight + 1) * max_batch
        self._most_backfill = in_flight * max_batch  # an upload waits for these
        self._claim_deadline_s = claim_deadline_s
        self._fetch_timeout_s = fetch_timeout_s
        self._takeover_idle_s = takeover_idle_s
        self._watch = watch
        self._on_housekeeping = on_housekeeping
        self._uploads_ran_out = False  # since house was last kept
        self._postponed = 0  # how many waited for another attempt when house was last kept
        self._claimed: list[Entry] = []  # and not handed on yet
        self._suspects = Suspects(intake, pipeline, metrics)
        self._connected_since: float | None = None
        self._kept_house = 0.0
        self._kept_house_ms = 0  # on Redis's clock, by which claims grow old
        self._pruned = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="puller", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether Redis answered the last time it was asked."""
        return self._connected_since is not None

    def start(self) -> None:
        """Starts pulling."""
        self._intake.ensure_groups()
        self._thread.start()

    def stop(self, drain_s: float) -> None:
        """Claims nothing more, lets what is in work finish for up to `drain_s`, and gives the rest back."""
        self._stopping.set()
        self._thread.join()
        deadline = time.monotonic() + drain_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self._pipeline.wait_until(lambda: not self._pipeline.in_work(), min(left_s, HOUSEKEEPING_S)):
                break
            self._watch()
            with contextlib.suppress(ModerationError):
                self._intake.refresh(self._held())
        rest = self._held()
        self._suspects.stop()
        try:
            self._intake.give_back(rest)
        except ModerationError:
            logger.warning("%d claims could not be given back; they are taken over when idle", len(rest))

    def blame_device(self) -> None:
        """Says that this process ends because its device broke: the picture judged alone has not killed it.

        Raises UnavailableError.
        """
        self._suspects.blame_device()

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._turn()
                failures = 0
            except Exception as error:
                # Whatever it is, this thread is the process's only source of work and must go on.
                if not isinstance(error, UnavailableError):
                    logger.error("pulling failed: %s", error, exc_info=not isinstance(error, ModerationError))
                elif failures == 0:
                    logger.warning("no work can be pulled: %s", error)
                self._connected_since = None
                pause = RECONNECT_PAUSES_S[min(failures, len(RECONNECT_PAUSES_S) - 1)]
                failures += 1
                self._stopping.wait(pause)

    def _turn(self) -> None:
        """One step: what was claimed is handed on, a suspect is judged, or more is claimed, by turns."""
        if time.monotonic() - self._kept_house >= HOUSEKEEPING_S:
            self._keep_house()
        judged_one = self._suspects.one_is_judged
        if self._suspects.step(HOUSEKEEPING_S):
            if judged_one and not self._suspects.one_is_judged:
                self._kept_house = 0.0  # else nothing is taken over before the last suspect
        elif self._claimed:
            self._hand_on()
        elif self._pipeline.wait_until(lambda: self._room() > 0, HOUSEKEEPING_S) and (room := self._room()) > 0:
            self._claim(room)  # asked again, for what was held up may be in work by now
            self._suspects.end_turn_of_others(claimed=True)
        else:
            self._suspects.end_turn_of_others(claimed=False)

    def _held(self) -> list[Entry]:
        """Every entry that this process has claimed."""
        return [item.entry for item in self._pipeline.in_work()] + self._claimed + list(self._suspects.waiting)

    def _room(self) -> int:
        """How many more entries may be in work: what the device and the decoders have a use for, and no more than was
        judged in the last seconds.

        What is held up elsewhere is no sign of a slow process: others need not wait for it.
        """
        in_work, held_up = len(self._pipeline.in_work()), self._pipeline.held_up()
        judging = max(0, in_work - held_up)
        # What was left to others is not in work, but its result may wait for Redis all the same.
        left = self._most_in_work - max(in_work, held_up)
        return min(left, max(FIRST_IN_WORK, self._pipeline.judged_lately()) - judging)

    def _claim(self, room: int) -> None:
        """Claims new entries, uploads before backfill; with nothing there and no suspect, waits for the first."""
        if len(self._suspects.waiting) > 2 * self._most_in_work:  # anyone may write such: one in for one out
            room = 1
        backfill_room = min(room, self._most_backfill - sum(item.entry.backfill for item in self._pipeline.in_work()))
        if self._postponed > MOST_POSTPONED_FOR_BACKFILL:
            backfill_room = 0
        self._claimed += self._intake.read([bus.UPLOADS], room)
        self._uploads_ran_out |= len(self._claimed) < room
        if not self._claimed and backfill_room > 0:
            self._claimed += self._intake.read([bus.BACKFILL], backfill_room)
        if not self._claimed and not self._suspects.waiting:
            streams = [bus.UPLOADS, bus.BACKFILL] if backfill_room > 0 else [bus.UPLOADS]
            block_ms = int(1000 * max(0.01, HOUSEKEEPING_S - (time.monotonic() - self._kept_house)))
            # Both at once only here, with nothing waiting: whichever comes first wakes us.
            self._claimed += self._intake.read(streams, max(1, min(room, backfill_room)), block_ms)
        self._connected()
        self._hand_on()

    def _hand_on(self) -> None:
        """Gives what is claimed to the pipeline, less what has a verdict; suspects wait for their turn."""
        unknown = self._intake.without_known(self._claimed)
        known = len(self._claimed) - len(unknown)
        self._metrics.duplicates.inc(known)
        if self._claimed:
            ids = [entry.content_id for entry in self._claimed]
            logger.info("claimed %d, %d have a verdict already", len(ids), known, extra={"content_ids": ids})
        self._claimed = []
        self._suspects.add(entry for entry in unknown if entry.suspect)
        self._pipeline.accept([entry for entry in unknown if not entry.suspect])

    def _keep_house(self) -> None:
        self._kept_house = time.monotonic()
        self._watch()
        patience = 1 if self._suspects.one_is_judged else FETCH_DEADLINES  # all others wait for its end
        self._pipeline.leave_overdue(patience * self._fetch_timeout_s, self._claim_deadline_s)
        before_ms = self._kept_house_ms
        self._kept_house_ms = self._intake.now_ms()  # nothing below this line is asked of a server that is away
        # Others may have refreshed theirs a second before, and it takes that long to look.
        if self._kept_house_ms - before_ms > 1000 * max(PAUSED_S, self._takeover_idle_s - 2 * HOUSEKEEPING_S):
            # As old as its own are the claims of all that were paused with it, until each has refreshed them.
            self._connected_since = time.monotonic()
        self._connected()
        self._intake.refresh(self._held())
        try:
            self._postponed = self._intake.postponed()
            self._wake_due()
        except ModerationError as error:  # a stream that takes no entry must not end take-over and the watchdog
            logger.error("what waits for another attempt stays where it is: %s", error)
        if self._connected_for_s() <= self._takeover_idle_s + HOUSEKEEPING_S:
            self._regain()  # before anybody may take them over, this process included
        if not self._suspects.one_is_judged and self._connected_for_s() >= self._takeover_idle_s:
            self._take_over()
        if time.monotonic() - self._pruned >= PRUNE_S:
            self._pruned = time.monotonic()
            self._intake.prune_consumers()
        self._on_housekeeping()

    def _wake_due(self) -> None:
        """One lot, or as many as this process has a use for.

        Twice what the content store had in the last second: one lot while it is away and each fails again, and soon all
        that can be judged once it is back. None of that while uploads wait, which would be behind it.
        """
        more = self._pipeline.fetched_lately() // DUE_AT_ONCE if self._uploads_ran_out else 0
        self._uploads_ran_out = False
        lots = 1 + min(more, MOST_LOTS_DUE - 1)
        while lots and self._intake.wake_due() == DUE_AT_ONCE:
            lots -= 1

    def _regain(self) -> None:
        """Takes up claims whose answer was lost: a server that stood still carries them out when it goes on.

        Left alone they would wait to be taken over, and be suspects then. More than once, for what a network held up
        may reach the server after what was sent later.
        """
        # Safe, for this is noted before Redis is asked, and only this thread claims: what is this process's even then
        # and not in here was never handed out. What leaves meanwhile is in here, and so is what was abandoned: that is
        # for others, and its claim must get no younger.
        known = {entry.key for entry in self._held()} | self._pipeline.left()
        for stream in (bus.UPLOADS, bus.BACKFILL):
            try:
                regained = self._intake.regain(stream, known)
            except ModerationError as error:  # looked for again; a stream that cannot be read must not end take-over
                logger.error("whether claims were lost on their way cannot be told: %s", error)
                continue
            if regained:
                logger.warning("%d claims had come with an answer that was lost", len(regained))
                self._claimed += regained

    def _take_over(self) -> None:
        """Claims what dead processes left; each stream's at once in memory, for the next command may fail."""
        # Never none for long: a backlog keeps the pipeline full, and a dead worker's claims must not wait for its end.
        room = max(self._room(), FIRST_IN_WORK)
        for stream in (bus.UPLOADS, bus.BACKFILL):
            before = len(self._claimed)
            suspects = sum(stream == bus.BACKFILL or not entry.backfill for entry in self._suspects.waiting)
            self._claimed += self._intake.take_over(stream, room - suspects - before)
            if taken := len(self._claimed) - before:
                logger.info("took over %d claims that were no longer refreshed", taken)
                self._metrics.reclaimed.inc(taken)

    def _connected(self) -> None:
        if self._connected_since is None:
            self._connected_since = time.monotonic()

    def _connected_for_s(self) -> float:
        return 0.0 if self._connected_since is None else time.monotonic() - self._connected_since
