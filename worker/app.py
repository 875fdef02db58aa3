"""The Celery app: gives the serving process its life, and clients that speak Celery a door.

`moderation.moderate` writes its IDs into the intake and returns; the work itself is pulled by a bootstep that
starts with the worker's pool and drains before it. Settings are read here, when Celery first asks for them.
"""

import json
import logging
import sys
import time
from functools import cache
from typing import Any, NoReturn

from celery import Celery, Task, bootsteps, signals
from celery.exceptions import Reject

from worker import connection, deadletter, logs, messages, misspelt, settings
from worker.client import Moderation
from worker.errors import ModerationError, UsageError
from worker.verdict import check_content_id

logger = logging.getLogger(__name__)

QUEUE = "moderation"
EXIT_USAGE = 2
# Of one message; 256 IDs of 128 characters take 34 KB.
BURIED_MAX_BYTES = 64 * 1024


def configuration() -> dict[str, Any]:
    """Celery's settings, from ours; called once, when they are first needed."""
    configured = read_settings()
    broker_url, transport_options = connection.celery_broker(configured.redis_url, configured.sentinel_master)
    return {
        "broker_url": broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_transport_options": transport_options
        | {
            "visibility_timeout": messages.VISIBILITY_TIMEOUT_S,
            "unacked_mutex_expire": 15,
            "socket_timeout": connection.SOCKET_TIMEOUT_S,
            "socket_connect_timeout": connection.CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
            "health_check_interval": connection.HEALTH_CHECK_INTERVAL_S,
        },
        "task_default_queue": QUEUE,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # Threads, for CUDA must not be forked; few, for a task only writes a few stream entries.
        "worker_pool": "threads",
        "worker_concurrency": 4,
        "worker_consumer": "worker.messages:Consumer",
        "worker_disable_prefetch": True,
        "worker_soft_shutdown_timeout": configured.drain_s,
        "worker_redirect_stdouts": False,
    }


def read_settings() -> settings.Settings:
    """The settings; ends the process with one sentence where they cannot be used."""
    try:
        return settings.load()
    except UsageError as error:
        _give_up(error)


def _give_up(error: ModerationError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_USAGE)


app = Celery("moderation", set_as_current=False)
app.add_defaults(configuration)


@cache
def _client() -> Moderation:
    return Moderation()


@cache
def _client_without_limit() -> Moderation:
    return Moderation(intake_max=0)


def _bury(sent: str, sentence: str) -> None:
    whole = sent.encode("utf-8", "backslashreplace")
    kept = whole[:BURIED_MAX_BYTES].decode("utf-8", "ignore")
    cut = f" Of {len(whole)} bytes the first {BURIED_MAX_BYTES} are kept." if len(whole) > BURIED_MAX_BYTES else ""
    deadletter.bury(_client().redis, kept[:128], "malformed_task", f"{sentence}{cut} Sent: {kept}", False)


@signals.worker_init.connect(weak=False)
def _keep_messages(sender: Any, **_: Any) -> None:
    if sender.app is app:  # not in a process that imports this module to send tasks, and may have a worker of its own
        messages.install(_bury)


class _AnyArguments(Task[..., Any]):
    """Calls the function with whatever was sent: Celery's own call fails where an argument is named `self`."""

    def __call__(self, /, *arguments: Any, **named: Any) -> Any:
        return self.run(*arguments, **named)


@app.task(name="moderation.moderate", base=_AnyArguments, throws=(UsageError,))
def moderate(*arguments: Any, **named: Any) -> int:
    """Enqueues `content_ids`, one ID or a list of 1 to 256; also `rescan`, `backfill`. Returns how many.

    Nothing may be lost, for the caller may have left: malformed IDs in a list go to the dead letters and the others are
    enqueued; arguments that are none go there whole; and where Redis takes neither, the message goes back.
    """
    try:
        return _enqueue(arguments, named)
    except _WrongArgumentsError:
        raise
    except ModerationError as error:
        logger.warning("a task goes back to its queue: %s", error)
        time.sleep(messages.REQUEUE_PAUSE_S)
        # Not acknowledged: if even the way back is refused, Celery delivers it again after the visibility timeout.
        raise Reject(str(error), requeue=True) from error


class _WrongArgumentsError(UsageError):
    """The caller's arguments; trying again would not help."""


def _arguments(content_ids: Any, rescan: bool = False, backfill: bool = False) -> tuple[Any, bool, bool]:
    """The task's signature."""
    return content_ids, rescan, backfill


def _enqueue(arguments: tuple[Any, ...], named: dict[str, Any]) -> int:
    try:
        content_ids, rescan, backfill = _arguments(*arguments, **named)
        good, malformed = _sorted_out(content_ids)
        _check_flags(rescan, backfill)
    except (UsageError, TypeError) as error:
        sent = json.dumps([arguments, named], ensure_ascii=True, default=str)  # kombu may have made dates and UUIDs
        sentence = str(error) if isinstance(error, UsageError) else "The task takes content_ids, rescan and backfill."
        _bury(sent, sentence)
        logger.warning("a task is refused and among the dead letters: %s", sentence)
        raise _WrongArgumentsError(sentence) from None
    # First, for it may be refused, and the message come again.
    # Backfill finds room always: it lies in the same Redis already, and its way back to the queue would hold up uploads
    # behind it, a thread of this worker's for each.
    client = _client_without_limit() if backfill else _client()
    count = client.submit(good, rescan=rescan, backfill=backfill) if good else 0
    for content_id in malformed:
        deadletter.bury(_client().redis, str(content_id)[:128], "malformed_id", "sent in a Celery task", rescan)
    return count


def _sorted_out(content_ids: object) -> tuple[list[str], list[object]]:
    wanted = [content_ids] if isinstance(content_ids, str) else content_ids
    if not isinstance(wanted, list) or not 1 <= len(wanted) <= settings.TASK_IDS_MAX:
        raise UsageError(f"content_ids must be one content ID or a list of 1 to {settings.TASK_IDS_MAX}.")
    good: list[str] = []
    malformed: list[object] = []
    for content_id in wanted:
        try:
            good.append(check_content_id(content_id))
        except UsageError:
            malformed.append(content_id)
    return good, malformed


def _check_flags(*flags: object) -> None:
    if not all(isinstance(flag, bool) for flag in flags):
        raise UsageError("rescan and backfill must be true or false.")


class PullerStep(bootsteps.StartStopStep):
    """Starts the serving side with the worker's pool, and stops it before the pool."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._service: Any = None
        self._drain_s = 0.0
        if not worker.options.get("task_events"):
            # What Celery tells its monitors, which nothing here reads: while the broker does not answer, it tries that
            # again for ever on the thread that SIGTERM is to end.
            worker.options.update(without_heartbeat=True, without_gossip=True, without_mingle=True)

    def start(self, worker: Any) -> None:
        """Builds all parts; where something is missing, says it in one sentence and ends the worker with exit 2."""
        # Imported here: clients import this module to send tasks, and need no torch for it.
        from worker.service import Service, end_process

        configured = read_settings()
        self._drain_s = configured.drain_s  # what stands in the environment's file at the end may not be readable
        try:
            self._service = Service(configured, node=worker.hostname, on_broken=end_process)
        except ModerationError as error:
            _give_up(error)

    def stop(self, worker: Any) -> None:
        """Drains."""
        self._stop(self._drain_s)

    def terminate(self, worker: Any) -> None:
        """Gives back at once what is in work."""
        self._stop(0.0)

    def _stop(self, drain_s: float) -> None:
        service, self._service = self._service, None
        if service is not None:
            service.stop(drain_s)


app.steps["worker"].add(PullerStep)


@signals.setup_logging.connect(weak=False)
def _set_up_logging(**_: Any) -> None:
    configured = read_settings()
    logs.set_up(configured.log_level, configured.log_format)
    for sentence in misspelt.sentences():
        logger.warning(sentence)
