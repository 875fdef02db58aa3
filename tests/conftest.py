"""Fixtures shared by all tests: real Valkey servers, content folders, weights stores of the tiny network, workers."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.place import Place
from tests.support.worker import REPOSITORY, Broker
from worker.client import Moderation

# Where files run side by side, these start first, or the last process would be alone with one of them for minutes.
# Long ones first, and what waits beside what computes: two that compute hold each other up on two cores.
LONGEST = (
    "integration/test_demo.py",
    "integration/test_hard_times.py",
    "integration/test_worker_life.py",
    "integration/test_trainer_cli.py",
    "integration/test_debian_redis.py",
    "unit/test_trainer_cluster.py",
    "integration/test_access.py",
    "unit/test_trainer_fit.py",
    "unit/test_trainer_fit_after_another.py",
    "deploy/test_prometheus.py",
    "integration/test_retrain.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Orders files as LONGEST says, in pytest-xdist's processes only: it hands them out in this order."""
    if hasattr(config, "workerinput"):
        here = Path(__file__).parent
        rank = {here / name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True, scope="session")
def _no_settings_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [name for name in os.environ if name.startswith("MODERATION_")]:
        del os.environ[name]
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A Valkey server with an append-only file, for this test alone."""
    server = Broker(tmp_path / "valkey")
    yield server
    server.stop()


@pytest.fixture
def client(broker: Broker) -> Moderation:
    """A client of this test's server."""
    return Moderation(broker.url)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A server, a content folder and a colour store for this test alone; workers started in it are ended."""
    with Place(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def busy_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place with one ready worker that all tests of a module share; retries are short there."""
    with Place(tmp_path_factory.mktemp("place")) as made:
        made.start_worker(not_found_retry_s="0.5", fetch_failed_retry_s="0.5").wait_ready()
        yield made


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The test pictures beside the repository; skips where they are absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the test pictures of ../shared/data are not on this machine")
    return folder
