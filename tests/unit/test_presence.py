"""What a worker says of itself while it lives."""

import importlib.metadata
from importlib.metadata import PackageNotFoundError

import pytest

from tests.support.worker import Broker
from worker import presence
from worker.presence import Presence, live_workers


def test_a_worker_names_its_release(broker: Broker) -> None:
    """As the package says it."""
    Presence(broker.client(), "c1", "gpu0@ant", "NVIDIA H200").announce("vgg11-3f9c0a71b2d4", "cuda-bf16", 12)
    (worker,) = live_workers(broker.client())
    assert worker.software == importlib.metadata.version("moderation-worker")


def test_a_worker_that_runs_from_a_bare_tree_lives(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no package of that name is installed it says so, and serves."""

    def nothing_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(presence, "version", nothing_installed)
    Presence(broker.client(), "c1", "gpu0@ant", "NVIDIA H200").announce("vgg11-3f9c0a71b2d4", "cuda-bf16", 12)
    (worker,) = live_workers(broker.client())
    assert worker.software == "unknown"
