"""Every way to name a Redis: what is taken, what is refused, where Celery lands, and that no secret is told."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis

from tests.support.worker import Broker, free_port
from worker import bus, connection
from worker.errors import UnavailableError, UsageError

SECRET = "geheim"

REFUSED = [
    "",
    "127.0.0.1:6379",
    "http://127.0.0.1:6379",
    "redis://127.0.0.1:port/0",
    "redis://127.0.0.1:99999/0",
    "redis://127.0.0.1/database",
    "redis://127.0.0.1/-1",
    "redis://127.0.0.1/1_0",
    "redis://127.0.0.1/0/1",
    "redis://127.0.0.1/0?db=x",
    "redis://127.0.0.1/0?socket_timeout=soon",
    "redis://127.0.0.1/0?colour=red",
    "redis://127.0.0.1/0?decode_responses=true",
    "redis://127.0.0.1/0?max_connections=2",
    "redis://[::1/0",
    "redis://two..dots/0",
    f"redis://{'a' * 64}/0",
    "redis://one:6379,two:6379/0",
    "rediss://127.0.0.1/0?ssl_cert_reqs=perhaps",
    f"redis://:{SECRET}/more@127.0.0.1/0",
    f"redis://:{SECRET}#more@127.0.0.1/0",
    f"redis://:{SECRET}?more=1@127.0.0.1/0",
    f"redis://:[{SECRET}@127.0.0.1/0",
]
REFUSED_WITH_SENTINEL = [
    "unix:///run/redis.sock",
    "redis:///0",
    "redis://,/0",
    "redis://one:26379,/0",
    "redis://one:port/0",
    "redis://one,two/database",
    f"redis://:{SECRET}/more@one,two/0",
]


@pytest.mark.parametrize(
    ("url", "master"), [(url, None) for url in REFUSED] + [(url, "mymaster") for url in REFUSED_WITH_SENTINEL]
)
def test_a_malformed_url_is_refused_without_being_repeated(url: str, master: str | None) -> None:
    """One sentence that names the variable and holds nothing of the URL, which may have a password in it."""
    with pytest.raises(UsageError, match="MODERATION_REDIS_URL") as raised:
        connection.connect(url, master)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1",
        "redis://127.0.0.1:6379/",
        "redis://user:p%40ss%2Fword@127.0.0.1:6379/3",
        "redis://[::1]:6379/0",
        "redis://127.0.0.1/0?socket_timeout=2&client_name=uploader",
        "rediss://127.0.0.1/0?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=2",
    ],
)
def test_a_well_formed_url_is_taken(url: str) -> None:
    """Nothing is sent yet: no server is needed to make a client."""
    connection.connect(url).close()


def target(client: redis.Redis) -> dict[str, Any]:
    """What a client connects with."""
    settings: dict[str, Any] = client.connection_pool.connection_kwargs
    return settings


def test_an_escaped_password_is_unescaped_with_and_without_sentinel() -> None:
    """%XX means the same in both; so do the user, the database and the rest of the URL."""
    for url, master in (
        ("redis://user:p%40ss@127.0.0.1:6379/3?client_name=x", None),
        ("redis://user:p%40ss@one:26379,two/3?client_name=x", "mymaster"),
    ):
        settings = target(connection.connect(url, master))
        assert (settings["username"], settings["password"], settings["db"]) == ("user", "p@ss", 3)
        assert settings["client_name"] == "x"
        assert settings["socket_timeout"] == connection.SOCKET_TIMEOUT_S


def test_sentinels_are_asked_at_their_addresses() -> None:
    """Names, IPv4 and IPv6; the usual port where none is named."""
    client = connection.connect("redis://one:1,two,[::1]:3,[::1]/0", "mymaster")
    manager = client.connection_pool.sentinel_manager
    addresses = [(target(sentinel)["host"], target(sentinel)["port"]) for sentinel in manager.sentinels]
    assert addresses == [("one", 1), ("two", 26379), ("::1", 3), ("::1", 26379)]


def test_tls_goes_to_the_sentinels_too() -> None:
    """`rediss://` with Sentinel: master and Sentinels over TLS, with the same authority."""
    client = connection.connect("rediss://one,two/0?ssl_ca_certs=/etc/ca.pem", "mymaster")
    pool = client.connection_pool
    assert issubclass(pool.connection_class, redis.connection.SSLConnection)
    for asked in pool.sentinel_manager.sentinels:
        assert issubclass(asked.connection_pool.connection_class, redis.connection.SSLConnection)
        assert target(asked)["ssl_ca_certs"] == "/etc/ca.pem"


@pytest.fixture
def socket_broker() -> Iterator[tuple[Broker, Path]]:
    """A server that listens on a Unix socket as well, whose path must be short."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        server = Broker(Path(folder) / "data", unixsocket=str(path))
        yield server, path
        server.stop()


def kombu_connection(url: str, sentinel_master: str | None = None) -> kombu.Connection:
    """As Celery makes it."""
    broker_url, options = connection.celery_broker(url, sentinel_master)
    return kombu.Connection(broker_url, transport_options=options)


def test_a_unix_socket_works_for_client_and_celery_alike(socket_broker: tuple[Broker, Path]) -> None:
    """Both reach the same database of the same server."""
    _, path = socket_broker
    url = f"unix://{path}?db=2"
    client = connection.connect(url)
    bus.ping(client)
    with kombu_connection(url) as celery:
        celery.SimpleQueue("letters").put("hello")
    assert client.llen("letters") == 1
    assert target(client)["db"] == 2


@pytest.mark.parametrize("place", ["/3", "/0?db=3", "/3?socket_timeout=2&client_name=uploader"])
def test_celery_lands_in_the_same_database(broker: Broker, place: str) -> None:
    """However the URL names it, and whatever else stands in it that kombu does not know."""
    url = f"redis://127.0.0.1:{broker.port}{place}"
    with kombu_connection(url) as celery:
        celery.SimpleQueue("letters").put("hello")
    assert connection.connect(url).llen("letters") == 1
    assert connection.connect(broker.url).exists("letters") == 0


def test_celery_uses_tls_where_we_do() -> None:
    """Certificates are checked unless the URL says otherwise; kombu takes that from the URL."""
    checked = kombu_connection("rediss://:p%40ss@127.0.0.1:1/3")
    assert checked.ssl == {"ssl_cert_reqs": 2}
    assert (checked.password, checked.virtual_host, checked.transport_cls) == ("p@ss", "3", "rediss")
    trusting = kombu_connection("rediss://127.0.0.1:1/3?ssl_cert_reqs=none&ssl_ca_certs=/etc/ca.pem&client_name=x")
    assert trusting.ssl == {"ssl_cert_reqs": 0, "ssl_ca_certs": "/etc/ca.pem"}


def test_celery_asks_the_same_sentinels() -> None:
    """All of them, with the credentials and database meant for the master; over TLS where we use it."""
    connection = kombu_connection("redis://user:p%40ss@one:1,two,[::1]:3/3", "mymaster")
    assert connection.alt == [f"sentinel://user:p%40ss@{host}/3" for host in ("one:1", "two:26379", "[::1]:3")]
    assert (connection.userid, connection.password, connection.virtual_host) == ("user", "p@ss", "3")
    assert connection.transport_options["master_name"] == "mymaster"
    assert not connection.ssl
    secured = kombu_connection("rediss://one,two/0?ssl_ca_certs=/etc/ca.pem", "mymaster")
    assert secured.ssl == {"ssl_cert_reqs": 2, "ssl_ca_certs": "/etc/ca.pem"}
    assert secured.transport_options["sentinel_kwargs"] == {
        "ssl": True,
        "ssl_cert_reqs": "required",
        "ssl_ca_certs": "/etc/ca.pem",
    }


def test_a_server_that_wants_a_password_is_a_matter_for_the_user(broker: Broker) -> None:
    """A password to a server that has none, then none or a wrong one to a server that has: UsageError without it."""
    unknown = broker.url.replace("redis://", f"redis://nobody:{SECRET}@")
    wrong = broker.url.replace("redis://", f"redis://:{SECRET}@")
    right = connection.connect(broker.url.replace("redis://", "redis://:right@"))

    def refused(url: str) -> None:
        with pytest.raises(UsageError, match="user or password") as raised:
            bus.ping(connection.connect(url))
        assert SECRET not in str(raised.value)

    refused(wrong)
    connection.connect(broker.url).config_set("requirepass", "right")
    bus.ping(right)
    for url in (broker.url, wrong, unknown):
        refused(url)
    right.config_set("requirepass", "")


def test_a_user_without_the_right_is_a_matter_for_the_user(broker: Broker) -> None:
    """The ACL forbids a command: UsageError."""
    connection.connect(broker.url).acl_setuser("reader", enabled=True, passwords=["+pw"], commands=["+get"], keys=["*"])
    client = connection.connect(broker.url.replace("redis://", "redis://reader:pw@"))
    with pytest.raises(UsageError, match="ACL"), bus.translated():
        client.set("a", "b")


def test_a_server_that_is_away_is_unavailable() -> None:
    """A refused connection, a silent Sentinel and a missing socket: try again later."""
    port = free_port()
    for url, master in (
        (f"redis://:{SECRET}@127.0.0.1:{port}/0", None),
        (f"redis://:{SECRET}@127.0.0.1:{port}/0", "mymaster"),
        ("unix:///no/such/socket", None),
    ):
        with pytest.raises(UnavailableError) as raised:
            bus.ping(connection.connect(url, master))
        assert SECRET not in str(raised.value)


def test_only_errors_of_redis_are_translated() -> None:
    """A mistake in our own code stays what it is."""
    with pytest.raises(ZeroDivisionError), bus.translated():
        raise ZeroDivisionError
