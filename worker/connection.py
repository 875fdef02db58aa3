"""Connections: a URL, with or without Sentinels, becomes a client of redis-py, and the broker that Celery speaks to.

Knows servers' addresses, passwords, TLS and time limits, and when a connection is of no use any more; what is said over
one is `bus` and those above it.
"""

import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

import redis
import redis.connection
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from worker.errors import UsageError

# Longer than any blocking read asks for (1 s), short enough that a half-open connection is noticed.
SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 3.0
HEALTH_CHECK_INTERVAL_S = 5
DEFAULT_SENTINEL_PORT = 26379


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
        parts, hosts = _split(url, sentinel_master)
        if sentinel_master is None:
            if {"decode_responses", "max_connections"} & dict(parse_qsl(parts.query)).keys():
                raise ValueError("answers come as bytes, and each part of the worker needs a connection")
            client = redis.Redis.from_url(url, **options)
            kind = client.connection_pool.connection_class
            client.connection_pool.connection_class = type(kind.__name__, (_LeavesReplicas, kind), {})
            _check_host(parts.hostname or "localhost")
        else:
            client = _through_sentinels(parts, hosts, sentinel_master, options)
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


def _split(url: str, sentinel_master: str | None) -> tuple[SplitResult, list[str]]:
    """A URL's parts, and its hosts where they are Sentinels, in whose place one name stands then.

    Python 3.13 splits no URL with several hosts of which one that is not the first is an IPv6 address.
    """
    if sentinel_master is None:
        return urlsplit(url), []
    split = re.fullmatch("([^/?#]*://(?:[^/?#]*@)?)([^/?#]*)(.*)", url, re.DOTALL)
    if split is None:
        raise ValueError("no URL")
    return urlsplit(f"{split[1]}master{split[3]}"), split[2].split(",")


def _through_sentinels(parts: SplitResult, hosts: list[str], master: str, options: dict[str, Any]) -> redis.Redis:
    if parts.scheme == "unix":
        raise ValueError("Sentinels are asked over TCP")
    sentinels = [_host_port(host) for host in hosts]
    # All but the hosts means what it means in any other URL.
    target = redis.connection.parse_url(parts.geturl())
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
    parts, hosts = _split(url, sentinel_master)
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
    credentials, at, _ = parts.netloc.rpartition("@")
    nodes = []
    for name, port in map(_host_port, hosts):
        nodes.append(f"sentinel://{credentials}{at}{f'[{name}]' if ':' in name else name}:{port}{suffix}")
    sentinel_kwargs = {"sentinel_kwargs": {"ssl": True, **tls}} if parts.scheme == "rediss" else {}
    return ";".join(nodes), {"master_name": sentinel_master, **sentinel_kwargs}
