"""Builds a worker process from its settings and starts and stops its parts in order. Decides nothing itself.

The only place that knows every room of the serving side; knows no Celery.
"""

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence

import redis

from worker import bus, connection, landlock, memory, seccomp
from worker.batcher import Batcher
from worker.champion import ChampionFollower
from worker.classifier import Classifier
from worker.content import ContentStore
from worker.decode import DecoderPool
from worker.errors import ModerationError, UnavailableError, WeightsError
from worker.health import HealthServer
from worker.intake import Intake
from worker.judgement import Rules
from worker.metrics import Metrics
from worker.model import devices
from worker.model.compiled import EngineCache
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits
from worker.model.weights import WeightsStore
from worker.overrule import Overruler
from worker.pipeline import Pipeline
from worker.presence import Presence
from worker.publish import Publisher, Quota
from worker.puller import Puller
from worker.settings import Settings
from worker.tuner import Tuner
from worker.watchdog import Watchdog

logger = logging.getLogger(__name__)

# Work that finishes nothing for so long stands still; longer than any stage of one picture may take.
STANDS_STILL_S = 60.0

# With what draining takes, less than supervisors wait before they kill.
CLOSING_S = 30.0
# For the threads beside the work, when that is over: with all the above, still less.
THREAD_CLOSING_S = 8.0

DEVICE_BROKEN_EXIT = 70  # sysexits.h: internal software error


class Service:
    """All parts of one worker process, running.

    Args:
        node: this worker's name for people, such as `gpu0@host`.
        on_broken: called when the device is broken and the process must end.

    Raises:
        UsageError, WeightsError, UnavailableError: one sentence on what is missing; nothing is left running.
    """

    def __init__(self, settings: Settings, *, node: str, on_broken: Callable[[BaseException], None]) -> None:
        memory.keep_what_was_used()
        self._settings = settings
        self._on_broken = on_broken
        self._decoder_problem: str | None = None
        self._closing = contextlib.ExitStack()
        self.metrics = Metrics()
        try:
            self._start(node)
        except BaseException:
            self._closing.close()
            raise

    def _start(self, node: str) -> None:
        """Every part, in the order in which they need each other; they are closed the other way round."""
        settings = self._settings
        client = connection.connect(settings.redis_url, settings.sentinel_master)
        self._closes(client.close)
        bus.ping(client)
        content = ContentStore(
            settings.content_url,
            max_bytes=settings.content_max_bytes,
            timeout_s=settings.fetch_timeout_s,
            options=settings.content_options,
        )
        store = WeightsStore(settings.weights_dir)
        on_gpu = devices.choose(settings.device).type == "cuda"
        self._start_classifier(store, settings.torch_thread_count(on_gpu=on_gpu))
        self._start_decoders(settings.decoder_count(on_gpu=on_gpu))
        self._start_scoring(store)
        consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        intake = Intake(client, consumer, settings.takeover_idle_s)
        self._start_pipeline(client, content, intake)
        self._presence = Presence(client, consumer, node, self._classifier.device_name)
        self._closes(self._presence.leave)
        self._start_pulling(intake)
        overruler = Overruler(client, settings.verdict_ttl_s)
        overruler.start()
        self._closes(overruler.close)

    def _start_classifier(self, store: WeightsStore, threads: int) -> None:
        self._classifier = Classifier(
            store, device=self._settings.device, precision=self._settings.precision, threads=threads
        )
        follower = ChampionFollower(
            store, self._classifier, self.metrics, closing_s=THREAD_CLOSING_S, on_broken=self._give_up
        )
        follower.start()
        self._closes(follower.stop)

    def _start_decoders(self, count: int) -> None:
        version = self._classifier.version
        if version is None:
            raise WeightsError("No weights are loaded.")
        self._decoders = DecoderPool(
            Preprocessing.from_json(version.manifest.preprocessing),
            DecodeLimits(max_pixels=self._settings.decode_max_pixels),
            processes=count,
            timeout_s=self._settings.decode_timeout_s,
            memory_bytes=self._settings.decode_memory_mb * 2**20,
            on_restart=lambda cause: self.metrics.restarts.labels(cause).inc(),
        )
        self._closes(self._decoders.close)
        filtered = "filtered" if seccomp.available() else "not filtered"
        said = "%d decoders open nothing, and give up what Landlock %d can forbid; their system calls are %s"
        logger.info(said, count, landlock.version(), filtered)

    def _start_scoring(self, store: WeightsStore) -> None:
        settings = self._settings
        self._watchdog = Watchdog(settings.forward_timeout_s)
        self._batcher = Batcher(
            self._classifier.score,
            begin=self._classifier.begin,
            in_flight=self._classifier.in_flight,
            max_images=settings.max_batch,
            closing_s=min(CLOSING_S, settings.forward_timeout_s),
            on_batch=self._on_batch,
            on_broken=self._give_up,
        )
        tuner = Tuner(
            self._classifier,
            store,
            EngineCache(settings.engines_folder(), settings.weights_dir),
            max_images=settings.max_batch,
            between=self._batcher.between,
            on_engine=lambda version: self.metrics.engine(version.id, version.engine),
            on_fallback=lambda engine, reason: self.metrics.engine_fallbacks.labels(engine, reason).inc(),
            closing_s=THREAD_CLOSING_S,
            on_broken=self._give_up,
        )
        tuner.start()
        # The batcher closes first and says so where a pass hangs, which the tuner may be waiting for.
        self._closes(tuner.stop)
        self._closes(self._batcher.close)

    def _start_pipeline(self, client: redis.Redis, content: ContentStore, intake: Intake) -> None:
        settings = self._settings
        self._pipeline = Pipeline(
            content=content,
            decoders=self._decoders,
            batcher=self._batcher,
            publisher=Publisher(
                client,
                settings.verdict_ttl_s,
                quota=Quota(settings.ban_quota_share, settings.ban_quota_count),
                review_placement=settings.review_placement,
            ),
            intake=intake,
            metrics=self.metrics,
            rules=Rules(
                review_placement=settings.review_placement,
                audit_share=settings.audit_share,
                not_found_retry_s=settings.not_found_retry_s,
                fetch_failed_retry_s=settings.fetch_failed_retry_s,
            ),
            fetch_threads=settings.fetch_threads,
        )
        self._closes(self._pipeline.close)

    def _start_pulling(self, intake: Intake) -> None:
        settings = self._settings
        self._puller = Puller(
            intake,
            self._pipeline,
            self.metrics,
            max_batch=settings.max_batch,
            in_flight=self._classifier.in_flight,
            claim_deadline_s=settings.claim_deadline_s,
            fetch_timeout_s=settings.fetch_timeout_s,
            takeover_idle_s=settings.takeover_idle_s,
            watch=self._watch,
            on_housekeeping=self._keep_house,
        )
        if settings.metrics_port:
            health = HealthServer(
                settings.metrics_host,
                settings.metrics_port,
                self.metrics.registry,
                healthy=self._healthy,
                ready=self._ready,
            )
            self._closes(health.close)
        self._puller.start()

    def _closes(self, close: Callable[[], object]) -> None:
        """Has a part closed at the end, before those that were started earlier."""
        self._closing.callback(_quietly, close)

    def stop(self, drain_s: float) -> None:
        """Claims nothing more, finishes what is in work for up to `drain_s`, gives the rest back, ends every part."""
        started = time.monotonic()
        self._puller.stop(drain_s)
        self._closing.close()
        logger.info("stopped after %.1f s", time.monotonic() - started)

    def _watch(self) -> None:
        if self._watchdog.overdue(self._batcher.busy_since):
            self._give_up(UnavailableError(f"a forward pass has not ended within {self._watchdog.most_s:g} s"))

    def _keep_house(self) -> None:
        try:
            self._decoders.check()
            self._decoder_problem = None
        except UnavailableError as error:
            self._decoder_problem = str(error)
        version = self._classifier.version
        if version is not None:
            self._presence.announce(version.id, version.engine, len(self._pipeline.in_work()))

    def _give_up(self, error: BaseException) -> None:
        """The device is broken. What was judged alone on it must not look as if it had killed this process."""
        with contextlib.suppress(Exception):  # nothing may keep this process from ending
            self._puller.blame_device()
        self._on_broken(error)

    def _on_batch(self, images: int, waits_s: Sequence[float], forward_s: float) -> None:
        self.metrics.batch.observe(images)
        self.metrics.stage.labels("forward").observe(forward_s)
        wait = self.metrics.stage.labels("wait")
        for wait_s in waits_s:
            wait.observe(wait_s)

    def _healthy(self) -> str | None:
        if self._decoder_problem is not None:
            return self._decoder_problem
        if self._pipeline.fetchers_hang():
            return "every fetch hangs: see to the content store, then restart this worker"
        still_s = self._pipeline.stands_still_s()
        if still_s > STANDS_STILL_S and self._puller.connected:
            return f"work in this process has stood still for {still_s:.0f} s: restart it, others take its work over"
        return None

    def _ready(self) -> str | None:
        if self._classifier.version is None:
            return "no weights are loaded"
        return None if self._puller.connected else "Redis does not answer"


def _quietly(close: Callable[[], object]) -> None:
    try:
        close()
    except Exception as error:  # the others must be closed all the same
        unforeseen = None if isinstance(error, ModerationError) else error
        logger.warning("while stopping: %s", error, exc_info=unforeseen)


def end_process(error: BaseException) -> None:
    """Ends this process at once: what it holds is taken over by others, which a broken device would only delay."""
    logger.critical("ending this process: %s", error)
    os._exit(DEVICE_BROKEN_EXIT)
