"""Celery's messages: none of those that a worker has received is lost, where Celery by itself would lose it.

What is no task of ours becomes a dead letter; what cannot be given back comes back by itself. Knows no tasks.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, ClassVar

from celery.worker import consumer
from kombu.transport import redis as transport

from worker.errors import ModerationError

logger = logging.getLogger(__name__)

VISIBILITY_TIMEOUT_S = 60
# A refusing server is not to be asked in a tight loop.
REQUEUE_PAUSE_S = 1.0


class _LeavesMessages(transport.QoS):
    """Gives messages back where it can.

    kombu 5.7 lets an error on the way out where it closes a connection that is lost already, and Celery then ends the
    worker: with a message in work, a restart of Redis could be its end. Messages come back by themselves.
    """

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
        body = message.body
        sent = body if isinstance(body, str) else bytes(body).decode("utf-8", "backslashreplace")
        named = message.headers.get("task") if isinstance(message.headers, dict) else None
        sent_as = f"{str(named)[:80]!r} as {str(message.content_type)[:80]}"
        sentence = f"The queue takes the task moderation.moderate as JSON, not {sent_as}."
        errors = self.connection_errors  # type: ignore[attr-defined]  # celery-types does not list it
        try:
            type(self).bury(sent, sentence)
        except ModerationError as error:
            logger.warning("a message goes back to its queue: %s", error)
            time.sleep(REQUEUE_PAUSE_S)  # no task could be done now either
            message.reject_log_error(logger, errors, requeue=True)
            return
        logger.warning("a message is refused and among the dead letters: %s", sentence)
        message.ack_log_error(logger, errors)


def install(bury: Callable[[str, str], None]) -> None:
    """Makes Celery and kombu treat messages so; for an app whose `worker_consumer` is this module's.

    Args:
        bury: makes a dead letter of what was sent and of one sentence; raises ModerationError where it cannot.
    """
    transport.Channel.QoS = _LeavesMessages
    Consumer.bury = bury
