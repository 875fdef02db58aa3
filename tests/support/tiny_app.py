"""The real Celery app in a process that also knows the tiny network: `celery -A tests.support.tiny_app worker`."""

from tests.tiny_network import TINY
from worker.app import app
from worker.model import network

network.register(TINY)

__all__ = ["app"]
