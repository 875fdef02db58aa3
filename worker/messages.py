"""Celery's messages: none of those that a worker has received is lost, or ends it, as it would with Celery by itself.

What is no task of ours becomes a dead letter; what cannot be given back comes back by itself. Knows no tasks.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import Any, ClassVar

from celery.worker import consumer, state
from kombu.transport import redis as transport
from kombu.transport import virtual
from kombu.utils import json as kombu_json
from kombu.utils.uuid import uuid

from worker.errors import ModerationError

logger = logging.getLogger(__name__)

VISIBILITY_TIMEOUT_S = 60
# A refusing server is not to be asked in a tight loop.
REQUEUE_PAUSE_S = 1.0


class _Message(virtual.Message):
    """Anything at all is a message, if no task: one that kombu cannot make would be lost and end the worker."""

    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
        try:
            payload["headers"] = payload.get("headers") or {}  # null could not be given back
            payload["headers"].items()
            properties = payload["properties"]
            route = properties["delivery_info"]
            needed = properties["delivery_tag"], route["exchange"], route["routing_key"]
            if not all(isinstance(one, str) for one in needed):
                raise TypeError
            super().__init__(payload, channel, **options)
        except Exception:
            super().__init__(_as_body(payload), channel, **options)


def _loads(sent: str) -> Any:
    try:
        return kombu_json.loads(sent)
    except Exception:
        return sent  # which is no message, and becomes a body


def _as_body(sent: Any) -> dict[str, Any]:
    return {
        "body": kombu_json.dumps(sent),
        "headers": {},
        "properties": {"delivery_tag": uuid(), "delivery_info": {"exchange": "", "routing_key": ""}},
    }


class _LeavesMessages(transport.QoS):
    """Gives messages back where it can.

    kombu 5.7 lets an error on the way out where it closes a connection that is lost already, and Celery then ends the
    worker: with a message in work, a restart of Redis could be its end. Messages come back by themselves.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        queues = self.channel.active_queues  # type: ignore[attr-defined]  # celery-types does not list it
        if len(queues) == 1:
            # Where it came from; not where the sender said that it goes, which may be nobody's queue.
            message.delivery_info.update(exchange="", routing_key=queues[0])
        super().append(message, delivery_tag)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        try:
            super().restore_unacked_once(stderr)
        except Exception as error:
            logger.warning("messages in work come back after %d s: %s", VISIBILITY_TIMEOUT_S, type(error).__name__)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue)
        except AttributeError:  # of a channel whose connection is gone; one that is being lost Celery knows
            logger.warning("a message in work comes back after %d s", VISIBILITY_TIMEOUT_S)


class Consumer(consumer.Consumer):
    """Keeps what Celery discards: a misspelt task, or one in another serialisation, is somebody's content IDs."""

    bury: ClassVar[Callable[[str, str], None]]

    def create_task_handler(self, *arguments: Any, **named: Any) -> Callable[[Any], None]:
        """Celery's, for what is whole: the rest ends its worker, or is lost in the pool."""
        handle = super().create_task_handler(*arguments, **named)
        lost = (*self.connection_errors, *self.channel_errors)  # type: ignore[attr-defined]  # likewise

        def on_task_received(message: Any) -> None:
            try:
                if _is_whole(message):
                    handle(message)
                else:
                    self._bury(message)
            except Exception as error:
                # A KeyError is also one of kombu's signs of a lost connection; here it is a header that is missing.
                if message.acknowledged or (isinstance(error, lost) and not isinstance(error, KeyError)):
                    raise
                for request in [one for one in state.reserved_requests if one.message is message]:
                    state.task_ready(request)  # or it would hold one of the pool's places
                self._bury(message)

        return on_task_received

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """No task at all."""
        self._bury(message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Another task."""
        self._bury(message)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Pickle, YAML, …"""
        self._bury(message)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """What says that it is JSON, and is none."""
        self._bury(message)

    def _bury(self, message: Any) -> None:
        sentence = (
            "The queue takes the task moderation.moderate as JSON, with headers task and id and the body "
            "[arguments, named arguments, {}]; this was "
            f"{str(message.headers.get('task'))[:80]!r} as {str(message.content_type)[:80]}."
        )
        errors = self.connection_errors  # type: ignore[attr-defined]  # likewise
        try:
            type(self).bury(_text(message.body), sentence)
        except ModerationError as error:
            logger.warning("a message goes back to its queue: %s", error)
            time.sleep(REQUEUE_PAUSE_S)  # no task could be done now either
            message.reject_log_error(logger, errors, requeue=True)
            return
        logger.warning("a message is refused and among the dead letters: %s", sentence)
        message.ack_log_error(logger, errors)


def _is_whole(message: Any) -> bool:
    """Whether its body is what Celery's pool takes for granted, in either version of the protocol."""
    payload = message.payload
    if isinstance(payload, dict):  # version 1
        arguments, named, embedded = payload.get("args") or [], payload.get("kwargs") or {}, payload
        payload |= {"args": arguments, "kwargs": named}
        if not arguments and not named:
            return False
    else:
        arguments, named, embedded = payload
        if named == []:  # as PHP writes {}
            payload[1] = named = {}
            message.body, message.content_encoding = kombu_json.dumps(payload), "utf-8"
    embedded = embedded or {}
    follow = [one for key in ("callbacks", "errbacks", "chain") for one in embedded.get(key) or ()]
    return (
        isinstance(arguments, list)
        and isinstance(named, dict)
        and all(isinstance(one, dict) and isinstance(one.get("task"), str) for one in follow)
        and isinstance(embedded.get("delivery_info"), dict | None)
        and all(isinstance(one.get("shadow"), str | None) for one in (embedded, message.headers))
    )


def _text(body: Any) -> str:
    if isinstance(body, str):
        return body
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body).decode("utf-8", "backslashreplace")
    return json.dumps(body, default=repr)  # as it came, where the sender named no encoding


def install(bury: Callable[[str, str], None]) -> None:
    """Makes Celery and kombu treat messages so; for an app whose `worker_consumer` is this module's.

    Args:
        bury: makes a dead letter of what was sent and of one sentence; raises ModerationError where it cannot.
    """
    transport.Channel.QoS = _LeavesMessages
    transport.Channel.Message = _Message
    # There is no hook, and what is no JSON would be lost and end the worker.
    transport.loads = _loads  # type: ignore[attr-defined]  # likewise
    Consumer.bury = bury
