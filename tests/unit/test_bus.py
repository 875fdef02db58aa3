"""The door to Redis: every foreign error becomes ours, no password leaks, every script loads."""

import inspect
import re
from importlib.resources import files
from pathlib import Path

import pytest
import redis

from tests.support.worker import Broker, free_port
from worker import bus, connection
from worker.errors import UnavailableError, UsageError

FOREIGN = [
    error
    for _, error in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(error, redis.exceptions.RedisError)
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda error: error.__name__)
def test_every_redis_error_becomes_ours(foreign: type[Exception]) -> None:
    """Whatever redis-py raises, now or in its next version."""
    error = foreign.__new__(foreign)
    with pytest.raises((UnavailableError, UsageError)) as caught, bus.translated():
        raise error
    assert str(caught.value).endswith(".")


def test_no_sentence_holds_the_password() -> None:
    """Neither for a server that is away nor for one that refuses the user."""
    client = connection.connect(f"redis://uploader:geheim@127.0.0.1:{free_port()}/0")
    with pytest.raises(UnavailableError) as away:
        bus.ping(client)
    assert "geheim" not in str(away.value)


def test_a_cluster_is_refused(tmp_path: Path) -> None:
    """At the start: a worker would claim there, and could never publish."""
    server = Broker(tmp_path / "valkey", **{"cluster-enabled": "yes", "cluster-port": str(free_port())})
    try:
        with pytest.raises(UsageError, match="Redis Cluster is not supported"):
            bus.ping(connection.connect(server.url))
    finally:
        server.stop()


@pytest.mark.parametrize("url", ["http://x", "redis://host:port/0", "redis://h:1/0?db=x"])
def test_a_malformed_url_is_refused(url: str) -> None:
    """One sentence that names the variable."""
    with pytest.raises(UsageError, match="MODERATION_REDIS_URL"):
        connection.connect(url)


def test_the_broker_is_the_same_server() -> None:
    """kombu gets what it needs for TLS, sockets and Sentinel."""
    assert connection.celery_broker("redis://h:1/0", None) == ("redis://h:1/0", {})
    assert connection.celery_broker("rediss://h:1/0", None) == ("rediss://h:1/0?ssl_cert_reqs=required", {})
    assert connection.celery_broker("unix:///run/redis.sock", None) == (
        "redis+socket:///run/redis.sock?virtual_host=0",
        {},
    )
    url, options = connection.celery_broker("redis://u:p@a:1,b/3", "m")
    assert url == "sentinel://u:p@a:1/3;sentinel://u:p@b:26379/3"
    assert options == {"master_name": "m"}


def test_every_script_loads(broker: Broker) -> None:
    """The server accepts each of them."""
    names = [path.name.removesuffix(".lua") for path in files("worker").joinpath("lua").iterdir()]
    assert "publish" in names
    for name in names:
        assert broker.client().script_load(bus.script(name))


def test_every_script_has_the_functions_that_it_calls() -> None:
    """It says which scripts it follows; one that is missing there would be found out when it is called only."""
    texts = {path.name: path.read_text() for path in files("worker").joinpath("lua").iterdir()}
    defined = {name for text in texts.values() for name in re.findall(r"^local function (\w+)", text, re.MULTILINE)}
    assert {"clock", "standing_verdict", "leave"} <= defined
    for file in texts:
        script = bus.script(file.removesuffix(".lua"))
        for name in defined:
            called, made = (re.search(pattern, script) for pattern in (rf"\b{name}\(", rf"local function {name}\("))
            assert not called or (made and made.start() < called.start()), (file, name)
