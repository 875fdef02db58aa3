"""The door to Redis or Valkey: key names, connections, scripts, and the one place where Redis errors become ours.

Knows what the keys are called, not what is done with them: `intake`, `publish`, `client`, `deadletter` and
`exporter` do that.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

import redis
import redis.connection
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from worker.errors import ModerationError, UnavailableError, UsageError

UPLOADS = "moderation:uploads"
BACKFILL = "moderation:backfill"
GROUP = "moderation"
VERDICTS = "moderation:verdicts"
DEAD_LETTER = "moderation:dead-letter"
RETRY = "moderation:retry"
CORRECTIONS = "moderation:corrections"
OVERRIDES = "moderation:overrides"
KNOWN = "moderation:known"
WITHHELD = "moderation:withheld"
BAN_WINDOW = "moderation:ban-window"
VERDICT_PREFIX = "moderation:verdict:"
ALONE_PREFIX = "moderation:alone:"
ANSWERED_PREFIX = "moderation:answered:"
WORKER_PREFIX = "moderation:worker:"
WORKERS = "moderation:workers"

StreamEntry = tuple[bytes, dict[bytes, bytes]]
"""(entry ID, fields), as redis-py gives them."""

# The last millisecond of year 9999: anyone may write an entry ID beyond what a date can be.
LATEST_MS = 253_402_300_799_999
# Longer than any blocking read asks for (1 s), short enough that a half-open connection is noticed.
SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 3.0
HEALTH_CHECK_INTERVAL_S = 5
DEFAULT_SENTINEL_PORT = 26379


def verdict_key(content_id: str) -> str:
    """Where the verdict document of one content ID lies."""
    return VERDICT_PREFIX + content_id


def entry_ms(entry_id: str | bytes) -> int:
    """When a stream entry was added, in ms since the epoch: at most the end of year 9999, whoever wrote its ID."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    return min(int(text.partition("-")[0]), LATEST_MS)


class _LeavesReplicas(redis.connection.AbstractConnection):
    """A connection that closes itself when its server turns out to be a read-only replica.

    After a fail-over behind one address (a virtual IP, DNS, a managed Redis) the old master may live on as a replica:
    a pool would keep its connections there for ever, and the next one made leads to the new master.
    """

    def read_response(self, *args: Any, **options: Any) -> Any:
        """As the connection's own; a read-only server's refusal becomes a ConnectionError."""
        try:
            answer = super().read_response(*args, **options)
            # A script that answers for many at once has the refusals in its answer, of no class of their own.
            for one in answer if isinstance(answer, list) else ():
                if isinstance(one, Exception) and "READONLY" in str(one):
                    raise redis.exceptions.ReadOnlyError(str(one))
            return answer
        except redis.exceptions.ReadOnlyError as error:
            super().disconnect()  # type: ignore[no-untyped-call]  # and mypy's list of exceptions knows no super()
            raise redis.exceptions.ConnectionError("this server is a read-only replica") from error


def connect(url: str, sentinel_master: str | None = None) -> redis.Redis:
    """A client on `url` that answers in bytes; nothing is sent yet. Raises UsageError for a malformed URL.

    Bytes, not strings: one stream entry that is no UTF-8 would otherwise make every read of its batch fail.
    """
    options: dict[str, Any] = {
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "protocol": 2,  # replies keep one shape over all versions of client and server
        "health_check_interval": HEALTH_CHECK_INTERVAL_S,
        # No hidden retries: a command whose answer was lost may have been carried out, and only the caller knows
        # whether repeating it is harmless.
        "retry": Retry(ExponentialBackoff(), 0),
    }
    if not url.startswith("unix://"):
        options["socket_keepalive"] = True
    try:
        f"{url}{sentinel_master}".encode()  # a variable may hold bytes that are no UTF-8, which no server is told
        parts = urlsplit(url)
        if sentinel_master is None:
            if {"decode_responses", "max_connections"} & dict(parse_qsl(parts.query)).keys():
                raise ValueError("answers come as bytes, and each part of the worker needs a connection")
            client = redis.Redis.from_url(url, **options)
            kind = client.connection_pool.connection_class
            client.connection_pool.connection_class = type(kind.__name__, (_LeavesReplicas, kind), {})
            _check_host(parts.hostname or "localhost")
        else:
            client = _through_sentinels(parts, sentinel_master, options)
        if parts.scheme != "unix" and re.fullmatch("/?[0-9]*", parts.path) is None:
            raise ValueError("redis-py takes database 0 for what is no number")
        # A first connection object, not connected: an option that redis-py does not know is noticed here or never.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (ValueError, TypeError, redis.exceptions.RedisError):
        # Without the reason, which may quote a piece of the password.
        raise UsageError(
            "MODERATION_REDIS_URL cannot be used: write redis://user:password@host:6379/0, with %XX for every special "
            "character of the password; see the settings table for TLS and Sentinel."
        ) from None
    return client


def _through_sentinels(parts: SplitResult, master: str, options: dict[str, Any]) -> redis.Redis:
    if parts.scheme == "unix":
        raise ValueError("Sentinels are asked over TCP")
    credentials, at, hosts = parts.netloc.rpartition("@")
    sentinels = [_host_port(host) for host in hosts.split(",")]
    # All but the hosts means what it means in any other URL.
    target = redis.connection.parse_url(parts._replace(netloc=f"{credentials}{at}master").geturl())
    del target["host"]
    tls = {name: value for name, value in target.items() if name.startswith("ssl_")}
    if target.pop("connection_class", None) is not None:
        target["ssl"] = tls["ssl"] = True
    sentinel = Sentinel(sentinels, sentinel_kwargs=options | tls)
    client: redis.Redis = sentinel.master_for(master, **options | target)
    return client


def _host_port(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError("a Sentinel without a name")
    return _check_host(parts.hostname), parts.port or DEFAULT_SENTINEL_PORT


def _check_host(name: str) -> str:
    name.encode("idna")  # as the resolver will, which raises no error of redis-py's
    return name


def celery_broker(url: str, sentinel_master: str | None) -> tuple[str, dict[str, Any]]:
    """The broker URL and transport options that make kombu speak to the same server and database as `connect`.

    For a URL that `connect` accepts.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    # kombu takes nothing but TLS from a query; time-outs come in its transport options.
    tls = {name: value for name, value in query.items() if name.startswith("ssl_")}
    if parts.scheme == "rediss":
        tls.setdefault("ssl_cert_reqs", "required")
    if parts.scheme == "unix":
        database = urlencode({"virtual_host": query.get("db", "0")})
        return f"redis+socket://{parts.netloc}{parts.path}?{database}", {}
    path = f"/{query['db']}" if "db" in query else parts.path
    suffix = path + (f"?{urlencode(tls)}" if tls else "")
    if sentinel_master is None:
        return f"{parts.scheme}://{parts.netloc}{suffix}", {}
    credentials, at, hosts = parts.netloc.rpartition("@")
    nodes = []
    for name, port in map(_host_port, hosts.split(",")):
        nodes.append(f"sentinel://{credentials}{at}{f'[{name}]' if ':' in name else name}:{port}{suffix}")
    sentinel_kwargs = {"sentinel_kwargs": {"ssl": True, **tls}} if parts.scheme == "rediss" else {}
    return ";".join(nodes), {"master_name": sentinel_master, **sentinel_kwargs}


# What redis-py raises and what it means to whoever called us; the first class that fits decides.
TRANSLATIONS: tuple[tuple[type[Exception], type[ModerationError], str], ...] = (
    (redis.exceptions.AuthenticationError, UsageError, "Redis refuses the user or password in MODERATION_REDIS_URL"),
    (redis.exceptions.AuthenticationWrongNumberOfArgsError, UsageError, "Redis wants another kind of login than ours"),
    (redis.exceptions.NoPermissionError, UsageError, "This Redis user may not do that; see the ACL in deploy/redis"),
    (redis.exceptions.OutOfMemoryError, UnavailableError, "Redis is out of memory; give it more, then try again"),
    (redis.exceptions.ReadOnlyError, UnavailableError, "This Redis is a read-only replica; try again shortly"),
    (redis.exceptions.BusyLoadingError, UnavailableError, "Redis is still loading its data; try again in a moment"),
    (redis.exceptions.ConnectionError, UnavailableError, "Redis does not answer; start it or set MODERATION_REDIS_URL"),
    (redis.exceptions.TimeoutError, UnavailableError, "Redis does not answer in time; try again"),
    (redis.exceptions.ResponseError, UnavailableError, "Redis refused a command"),
    (redis.exceptions.RedisError, UnavailableError, "Redis failed"),
)  # fmt: skip


@contextmanager
def translated() -> Iterator[None]:
    """Turns every error of redis-py inside the block into one of ours."""
    try:
        yield
    except redis.exceptions.RedisError as error:
        raise translate(error) from error


def translate(error: Exception) -> ModerationError:
    """One of our errors for one of redis-py's; never holds the URL, which may carry a password."""
    for foreign, ours, sentence in TRANSLATIONS:
        if isinstance(error, foreign):
            detail = f" ({error})" if type(error) is redis.exceptions.ResponseError else ""
            return ours(f"{sentence}{detail}.")
    return UnavailableError(f"Redis failed ({type(error).__name__}).")


def check_entry_id(entry_id: str) -> str:
    """Returns a stream's entry ID; raises UsageError where it is none."""
    if re.fullmatch(r"[0-9]{1,20}(-[0-9]{1,20})?", entry_id, re.ASCII) is None:
        raise UsageError(f"{entry_id[:80]!r} is no entry ID: give 0, or one that was printed, such as 1764000000000-0.")
    return entry_id


def read_stream(
    client: redis.Redis, stream: str, after: bytes | str, count: int, block_ms: int | None = None
) -> list[StreamEntry]:
    """Entries later than `after`; with `block_ms`, waits up to so long for the first."""
    with translated():
        reply: Any = client.xread({stream: after}, count=count, block=block_ms)
    return reply[0][1] if reply else []


def range_stream(
    client: redis.Redis, stream: str, first: bytes | str, last: bytes | str = "+", count: int = 1
) -> list[StreamEntry]:
    """Entries from `first` to `last`, both included unless written with a `(`."""
    with translated():
        reply: Any = client.xrange(stream, min=first, max=last, count=count)
    return list(reply)


def text_at(client: redis.Redis, key: str) -> bytes | None:
    """What a key holds, or None where there is nothing, or something else than a text."""
    with translated():
        try:
            found: Any = client.get(key)
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return None
    return None if found is None else bytes(found)


def ensure_groups(client: redis.Redis, streams: Iterable[str]) -> None:
    """Creates the streams' consumer groups where they are missing, from the first entry on."""
    for stream in streams:
        try:
            with translated():
                client.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except UnavailableError as error:
            if "BUSYGROUP" not in str(error):
                raise


def grouped(client: redis.Redis, streams: Iterable[str], command: Callable[[], Any]) -> Any:
    """Runs a command of the streams' consumer group; creates the group again where it vanished."""
    try:
        with translated():
            return command()
    except UnavailableError as error:
        if "NOGROUP" not in str(error):
            raise
    ensure_groups(client, streams)
    with translated():
        return command()


@cache
def script(*names: str) -> str:
    """The text of Lua scripts shipped with the package, one after the other; each lists the keys it touches."""
    folder = files("worker") / "lua"
    return "".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in names)


def now_ms(client: redis.Redis) -> int:
    """Milliseconds since the epoch on Redis's clock, the only one that counts here."""
    with translated():
        seconds, micros = client.time()
    return int(seconds * 1000 + micros // 1000)


def ping(client: redis.Redis) -> None:
    """Raises UnavailableError or UsageError with one sentence where the server cannot be used."""
    with translated():
        client.ping()
        version = client.info("server").get("redis_version", "0")
    if int(str(version).split(".")[0]) < 7:
        raise UsageError(f"Redis {version} is too old: use Redis 7 or newer, or Valkey.")
