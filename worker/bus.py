"""The door to Redis or Valkey: key names, streams, scripts, and the one place where Redis errors become ours.

Knows what the keys are called; not what is done with them, which is the modules' above it, nor where the server is,
which `connection` knows.
"""

import re
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import redis

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


def verdict_key(content_id: str) -> str:
    """Where the verdict document of one content ID lies."""
    return VERDICT_PREFIX + content_id


def entry_ms(entry_id: str | bytes) -> int:
    """When a stream entry was added, in ms since the epoch: at most the end of year 9999, whoever wrote its ID."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    return min(int(text.partition("-")[0]), LATEST_MS)


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
    refused = error.__context__  # redis-py makes one kind of error of whatever a connection fails for
    if isinstance(refused, ssl.SSLCertVerificationError):
        return UnavailableError(
            f"Redis's certificate is not trusted ({refused.verify_message.rstrip('.')}); see ssl_ca_certs in the "
            "settings table."
        )
    for foreign, ours, sentence in TRANSLATIONS:
        if isinstance(error, foreign):
            detail = f" ({error})" if type(error) is redis.exceptions.ResponseError else ""
            return ours(f"{sentence}{detail}.")
    return UnavailableError(f"Redis failed ({type(error).__name__}).")


def check_entry_id(entry_id: str) -> str:
    """Returns a stream's entry ID; raises UsageError where it is none."""
    shaped = re.fullmatch(r"[0-9]{1,20}(-[0-9]{1,20})?", entry_id, re.ASCII)
    if shaped is None or any(int(part) >= 2**64 for part in entry_id.split("-")):
        raise UsageError(f"{entry_id[:80]!r} is no entry ID: give 0, or one that was printed, such as 1764000000000-0.")
    return entry_id


def read_stream(
    client: redis.Redis, stream: str, after: bytes | str, count: int, block_ms: int | None = None
) -> list[StreamEntry]:
    """Entries later than `after`; with `block_ms`, waits up to so long for the first."""
    with translated():
        reply: Any = client.xread({stream: after}, count=count, block=block_ms)
    return reply[0][1] if reply else []


def begins_after(client: redis.Redis, stream: str, entry_id: str) -> bool:
    """Whether a stream begins later than an entry ID that is not 0: what was in between, if anything, is gone."""
    if not any(place := _place(entry_id)):
        return False
    first = read_stream(client, stream, "0", 1)
    return bool(first) and _place(first[0][0].decode()) > place


def _place(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number or 0)


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
        if _has_group(client, stream):  # a server without memory refuses to create even one that is there
            continue
        try:
            with translated():
                client.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except UnavailableError as error:
            if "BUSYGROUP" not in str(error):
                raise


def _has_group(client: redis.Redis, stream: str) -> bool:
    with translated():
        try:
            groups: Any = client.xinfo_groups(stream)
        except redis.exceptions.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return False
    return any(group["name"] == GROUP.encode() for group in groups)


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
def script(name: str) -> str:
    """The text of a Lua script shipped with the package, after those that it says it follows, for their functions.

    Each lists the keys it touches.
    """
    return "".join(_lua(part) for part in _in_order(name))


def _in_order(name: str) -> list[str]:
    follows = re.search(r"^-- .*\bFollows ([a-z, ]+)\.$", _lua(name), re.MULTILINE)
    before = [part for other in (follows[1].split(", ") if follows else ()) for part in _in_order(other)]
    return list(dict.fromkeys([*before, name]))  # each once


def _lua(name: str) -> str:
    return (files("worker") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def now_ms(client: redis.Redis) -> int:
    """Milliseconds since the epoch on Redis's clock, the only one that counts here."""
    with translated():
        seconds, micros = client.time()
    return int(seconds * 1000 + micros // 1000)


def ping(client: redis.Redis) -> None:
    """Raises UnavailableError or UsageError with one sentence where the server cannot be used."""
    with translated():
        client.ping()
        server: Any = client.info("server")
    version = server.get("redis_version", "0")
    if "cluster" in (server.get("redis_mode"), server.get("server_mode")):  # the latter is Valkey's
        raise UsageError(
            "Redis Cluster is not supported, for a step touches keys of several slots: use a single Redis."
        )
    if int(str(version).split(".")[0]) < 7:
        raise UsageError(f"Redis {version} is too old: use Redis 7 or newer, or Valkey.")
