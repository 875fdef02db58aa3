"""Replaces the engine in service by a faster one, once that is built, timed, and shown to agree with fp32.

One thread at a lower priority: version in service ─► candidates ─► build ─► faster here (`timing`)? ─► agrees with
fp32 on the pictures kept with the version and, where those are too few, on what is being judged (`comparison`)? ─►
`Classifier.use`. Knows no content IDs, queues or metrics.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import torch

from worker import timing
from worker.classifier import Classifier, Version
from worker.comparison import Candidate, Comparison
from worker.errors import ModerationError, UnavailableError
from worker.model import devices
from worker.model.agreement import RULES
from worker.model.compiled import EngineCache, EngineError
from worker.model.devices import OutOfDeviceMemoryError
from worker.model.engine import EagerEngine, Engine, Head
from worker.model.manifest import Manifest
from worker.model.weights import WeightsStore

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
NICENESS: Final = 10
"""Of this thread and those that multiply for it: the work in service goes first."""

CAPTURED_MIN: Final = 8
"""Images of the largest batch that graphs are captured for, at least, where memory lacks for more."""
AGAIN_AFTER_S: Final = 300.0
"""Until what lacked memory is tried again, at first: whoever has it may have let go."""
AGAIN_MAX_S: Final = 3600.0

Build = Callable[[Version, str], Engine]


class _SupersededError(Exception):
    """Another version is in service, or the process ends."""


class Tuner:
    """One thread beside the work.

    Args:
        classifier: whose engine is to be replaced; says the device and the precision that was asked for.
        cache: compiled engines and what they were compared on.
        max_images: in one forward pass; what a GPU's engine is prepared for, and how many are timed at most.
        between: runs a call with the device for itself, no batch beside it, and returns what it does.
        build: makes an engine for a version in a precision, EngineError where it cannot; from `cache` if None.
        on_engine: told the version once another engine serves it.
        on_fallback: told (engine, reason) for each candidate that is not used, or not yet.
        closing_s: how long a stop waits for the thread.
        on_broken: told where the device is broken, or hangs at a stop: only a new process gets it back.
    """

    def __init__(
        self,
        classifier: Classifier,
        store: WeightsStore,
        cache: EngineCache,
        *,
        max_images: int = 1,
        between: Callable[[Callable[[], float]], float] = lambda call: call(),
        build: Build | None = None,
        on_engine: Callable[[Version], None] = lambda version: None,
        on_fallback: Callable[[str, str], None] = lambda engine, reason: None,
        closing_s: float = 15.0,
        on_broken: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._classifier = classifier
        self._cache = cache
        self._max_images = max_images
        self._between = between
        self._build = build or self._build_from_cache
        self._on_engine = on_engine
        self._on_fallback = on_fallback
        self._closing_s = closing_s
        self._on_broken = on_broken
        self._comparison = Comparison(classifier, store, cache, self._check_current)
        self._spoilt = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tuner", daemon=True)
        classifier.accepts = self._accepts

    def start(self) -> None:
        """Begins beside the work; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and a compilation with it; one that does not end is reported to `on_broken`."""
        self._stopping.set()
        self._cache.stop()
        if self._thread.is_alive():
            self._thread.join(self._closing_s)
        if self._thread.is_alive():
            self._on_broken(UnavailableError(f"the tuner has not ended {self._closing_s:g} s after the stop"))

    def _run(self) -> None:
        thread = threading.get_native_id()  # Linux: of this thread alone
        # Never higher than what the process was started with, which only root may ask for.
        os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
        tuned: str | None = None
        again_at, pause_s, emptied = math.inf, AGAIN_AFTER_S, True
        while not self._stopping.wait(LOOK_EVERY_S):
            version = self._classifier.version
            if version is None or (version.id == tuned and time.monotonic() < again_at):
                if not emptied:  # not before `version` is what serves now, and what served is gone
                    emptied = True
                    self._empty_cache()
                continue
            tuned = None  # whatever was tuned before may come back, by a rollback, without what served it then
            try:
                done = self.tune(version)
            except _SupersededError:
                continue
            tuned, again_at = version.id, math.inf if done else time.monotonic() + pause_s
            pause_s = AGAIN_AFTER_S if done else min(2 * pause_s, AGAIN_MAX_S)  # each try takes the device to its limit
            emptied = self._classifier.device.type != "cuda"

    def tune(self, version: Version) -> bool:
        """Tries what may be faster for this version, in turn; what fails is reported, never raised.

        False where memory lacked for one of them, which may be otherwise later.
        """
        done = True
        self._comparison.forget_others(version)
        for precision in self._candidates(self._serving(version)):
            name = f"{self._classifier.device.type}-{precision}"
            try:
                self._try(version, name, precision)
            except EngineError as error:
                self._fall_back(version, name, error.reason, str(error))
            except _SupersededError:
                raise
            except Exception as error:
                # Never fatal: what serves goes on.
                done = self._failed(version, name, error) and done
                self._tell_if_broken()
        return done

    def _failed(self, version: Version, name: str, error: Exception) -> bool:
        """Reports what is not the candidate's own refusal; False where it may be otherwise later."""
        reason, said = "build_failed", str(error) if isinstance(error, ModerationError) else repr(error)
        if devices.SPOILT in said:
            self._spoilt, reason = True, "captures_spoilt"
            said = "a capture of graphs failed earlier, and this release of torch takes no more: restart this worker"
        elif devices.lacks_memory(error, self._classifier.device):
            reason = "no_memory"
        self._fall_back(version, name, reason, said)
        return reason != "no_memory"

    def _empty_cache(self) -> None:
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            self._tell_if_broken()

    def _tell_if_broken(self) -> None:
        """While nothing is judged, nobody else would notice; and a broken device may say that memory lacks."""
        broken = devices.sticky_error(self._classifier.device)
        if broken is not None:
            self._on_broken(broken)

    def _candidates(self, serving: Version) -> tuple[str, ...]:
        """Precisions to try, slow to fast; none up to one taken over from the version before (see `_accepts`)."""
        if self._spoilt:
            return ()
        asked, device = self._classifier.precision, self._classifier.device.type
        if asked == "auto":
            order: tuple[str, ...] = ("bf16", "int8") if device == "cpu" else ("bf16",)
        else:
            order = () if asked == "fp32" else (asked,)
        names = [f"{device}-{precision}" for precision in order]
        if isinstance(serving.runner, EagerEngine) or serving.engine not in names:
            return order
        return order[names.index(serving.engine) + 1 :]

    def _try(self, version: Version, name: str, precision: str) -> None:
        self._check_possible(version, precision)
        engine = self._build(version, precision)
        if self._classifier.precision != "auto":
            self._put(version, engine, "as MODERATION_PRECISION asks, whatever a comparison would show")
            return
        if not self._faster(engine, self._serving(version).runner, version):
            raise EngineError("slower", "it is no faster than what serves on this machine")
        candidate = Candidate(version, precision, engine, self._classifier.reference(version))
        agreement = self._comparison.on_kept(candidate)
        if agreement.refusal == "too_few_pictures":
            enough = RULES[precision].pictures_min
            said = f"compared on {agreement.pictures} pictures of {enough}, the rest from what is judged"
            self._fall_back(version, name, agreement.refusal, said)
            agreement = self._comparison.on_live(candidate)
        shown = f"{agreement.flips} of {agreement.clear_pictures} clear labels flipped, {agreement.pictures} pictures"
        if agreement.refusal is not None:
            raise EngineError(agreement.refusal, shown)
        self._put(version, engine, shown)

    def _check_possible(self, version: Version, precision: str) -> None:
        if precision == "bf16" and not devices.native_bf16(self._classifier.device):
            raise EngineError("not_native", f"this {self._classifier.device.type} does not multiply bf16 natively")
        if precision == "int8" and not version.manifest.activation_ranges:
            raise EngineError("no_ranges", "the version keeps no ranges to scale it by")

    def _build_from_cache(self, version: Version, precision: str) -> Engine:
        if self._classifier.device.type == "cuda":
            return self._graphs(version, precision)
        return self._cache.engine(version.manifest, version.body, precision)

    def _graphs(self, version: Version, precision: str) -> Engine:
        """For as many images at once as there is memory for; larger batches run in parts."""
        most = self._max_images
        while True:
            try:
                return self._classifier.graphed(version, precision, most)
            except OutOfDeviceMemoryError as error:
                if most <= CAPTURED_MIN:
                    raise
                logger.info("%s: %s", version.id, error)
            # Not before the error is gone, which holds what was captured so far.
            most = max(CAPTURED_MIN, most // 2)
            self._check_current(version)

    def _faster(self, engine: Engine, serving: Engine, version: Version) -> bool:
        check, crop = partial(self._check_current, version), version.preprocessing.crop
        try:
            return timing.is_faster(
                engine, serving, crop=crop, max_images=self._max_images, between=self._between, check=check
            )
        except UnavailableError:
            raise _SupersededError from None

    def _accepts(self, engine: Engine, manifest: Manifest, head: Head) -> bool:
        """Whether the engine in service may serve a version with another last layer: judged anew, on what is kept."""
        if self._classifier.precision != "auto":
            return True
        return self._comparison.accepts(engine, manifest, head)

    def _put(self, version: Version, engine: Engine, shown: str) -> None:
        if not self._classifier.use(engine, version.id):
            raise _SupersededError
        logger.info("%s: serving with %s now: %s", version.id, engine.name, shown)
        self._on_engine(self._serving(version))

    def _fall_back(self, version: Version, name: str, reason: str, said: str) -> None:
        serving = self._classifier.version
        logger.warning("%s: %s, not %s: %s", version.id, serving.engine if serving else "nothing", name, said)
        self._on_fallback(name, reason)

    def _serving(self, version: Version) -> Version:
        serving = self._classifier.version
        return version if serving is None else serving

    def _check_current(self, version: Version) -> None:
        serving = self._classifier.version
        if self._stopping.is_set() or serving is None or serving.id != version.id:
            raise _SupersededError
