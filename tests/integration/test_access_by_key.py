"""Every key of ours and of Celery, every way to write it, every role of deploy/redis: allowed or refused as listed."""

import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.guarded import ROLES, GuardedServer, debian_redis, valkey
from tests.support.worker import REPOSITORY, Broker
from worker import app, bus, connection, exporter

NAMES = {
    value
    for name, value in vars(bus).items()
    if name.isupper() and isinstance(value, str) and value.startswith("moderation:")
}
"""Keys, and with a colon at the end what many keys begin with."""
CELERYS = [app.QUEUE, "_kombu.binding.moderation", "unacked", "unacked_index", "unacked_mutex"]
KEYS = sorted([f"{name}x" if name.endswith(":") else name for name in NAMES] + CELERYS)
WAYS: list[tuple[str, ...]] = [
    ("SET", "{}", "x"), ("DEL", "{}"), ("UNLINK", "{}"), ("GETDEL", "{}"), ("EXPIRE", "{}", "1"), ("APPEND", "{}", "x"),
    ("RENAME", "{}", "moderation:elsewhere"), ("COPY", "moderation:elsewhere", "{}"),
    ("HSET", "{}", "x", "y"), ("HDEL", "{}", "x"), ("SADD", "{}", "x"), ("SREM", "{}", "x"),
    ("ZADD", "{}", "1", "x"), ("ZREM", "{}", "x"), ("LPUSH", "{}", "x"), ("RPOP", "{}"),
    ("XADD", "{}", "*", "x", "y"), ("XDEL", "{}", "1-1"), ("XTRIM", "{}", "MAXLEN", "0"), ("XSETID", "{}", "9-9"),
    ("XACK", "{}", "moderation", "1-1"), ("XCLAIM", "{}", "moderation", "me", "0", "1-1"),
    ("XGROUP", "DESTROY", "{}", "moderation"), ("XGROUP", "SETID", "{}", "moderation", "$"),
    ("XREADGROUP", "GROUP", "moderation", "me", "STREAMS", "{}", ">"),
]  # fmt: skip
ANYTHING = "return redis.call(unpack(ARGV))"
MAY = {
    "uploader": {("XADD", bus.UPLOADS), ("XADD", bus.BACKFILL)},
    "dashboard": set(),
    "trainer": set(),
    "moderator": {
        *product(["XADD"], [bus.CORRECTIONS, bus.VERDICTS, bus.UPLOADS, bus.BACKFILL]),
        ("SET", f"{bus.VERDICT_PREFIX}x"),
        ("HDEL", bus.WITHHELD), ("DEL", bus.WITHHELD), ("DEL", bus.BAN_WINDOW),
        ("XDEL", bus.DEAD_LETTER),
    },
    "worker": set(product({way[0] for way in WAYS}, KEYS)),
    "admin": set(product({way[0] for way in WAYS}, KEYS)),
}  # fmt: skip
"""(command, key); who sees to it that each of these is needed is test_access.py."""
DANGEROUS: list[tuple[str, ...]] = [
    ("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("SHUTDOWN",), ("MONITOR",),
    ("CLIENT", "KILL", "TYPE", "normal"), ("REPLICAOF", "NO", "ONE"),
]  # fmt: skip


@pytest.fixture(scope="module", params=[valkey, debian_redis], ids=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    """Each kind of server, with nothing in it."""
    program: Callable[[], str] = request.param
    with GuardedServer(tmp_path_factory.mktemp("server"), program()) as made:
        yield made


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """Each way to write each key: (command, key, all words)."""
    for key, way in product(KEYS, WAYS):
        yield way[0], key, [word.format(key) for word in way]


def test_no_key_is_named_beside_the_bus() -> None:
    """Else the table below would miss it: what code and scripts write `moderation:…` is a key of `worker.bus`."""
    for file in sorted((REPOSITORY / "worker").rglob("*")):
        if file.suffix in (".py", ".lua"):
            named = set(re.findall(r"moderation:[a-z-]+:?", file.read_text(encoding="utf-8")))
            assert named <= NAMES, file


def test_every_role_is_listed() -> None:
    """In the table above, and in the file that the servers are started with."""
    template = Path(REPOSITORY / "deploy" / "redis" / "users.acl.template").read_text(encoding="utf-8")
    assert set(re.findall(r"^user (\w+)", template, re.M)) == {*MAY, "default"} == {*ROLES, "default"}


@pytest.mark.parametrize("role", sorted(set(MAY) - {"worker", "admin"}))
def test_a_role_writes_no_key_but_its_own(server: GuardedServer, role: str) -> None:
    """Neither by the command itself nor by a script that says it, which counts as said by whoever runs it."""
    client, digest = server.client(role), server.client().script_load(ANYTHING)
    for name, key, words in commands():
        if (name, key) in MAY[role]:
            continue
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*words)
        with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|can.t (access|run)"):
            client.evalsha(digest, 1, key, *words)
    assert list(server.client().scan_iter("*")) == []


@pytest.mark.parametrize("role", sorted(MAY))
def test_a_role_may_what_is_listed(server: GuardedServer, role: str) -> None:
    """The server's own answer, so that nothing stands in the table that the file does not allow."""
    admin = server.client()
    for name, key, words in commands():
        if (name, key) in MAY[role]:
            said: Any = admin.execute_command("ACL", "DRYRUN", role, *words)
            assert said in (b"OK", "OK"), (role, words, said)


@pytest.mark.parametrize("role", sorted(set(MAY) - {"admin"}))
def test_no_role_looks_around_or_destroys(server: GuardedServer, role: str) -> None:
    """Not even a worker."""
    client = server.client(role)
    for command in DANGEROUS:
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)


def test_an_acl_file_of_an_older_release_costs_the_exporter_one_figure(broker: Broker) -> None:
    """Whoever may not ask how far ahead verdicts are dated still gets all the rest."""
    raw = broker.client()
    for stream in (bus.VERDICTS, bus.DEAD_LETTER):
        raw.xadd(stream, {"any": "thing"})
    others = [bus.UPLOADS, bus.BACKFILL, bus.RETRY, bus.DEAD_LETTER, bus.CORRECTIONS, bus.WITHHELD]
    keys = [f"~{key}" for key in [*others, bus.BAN_WINDOW, bus.WORKERS, f"{bus.WORKER_PREFIX}*"]]
    raw.execute_command("ACL", "SETUSER", "older", "on", ">word", "resetkeys", *keys, "+@all")
    client = connection.connect(broker.url.replace("redis://", "redis://older:word@"))
    assert exporter.read(client).records_ahead_s == {"corrections": 0.0, "dead-letter": 0.0}
    assert exporter.read(client).dead_letters == 1
    assert exporter.read(raw).records_ahead_s.keys() == {"verdicts", "corrections", "dead-letter"}
