"""The ban circuit breaker as a person sees it: what it withholds, and how it is closed.

It opens by itself, inside the publish step (lua/publish.lua), where bans of all workers are counted. Knows no
pictures and no workers.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict, Field
from redis.client import Pipeline
from redis.commands.core import Script

from worker import bus
from worker.verdict import MomentText, Verdict, read

OPENED = b"#opened"
CHUNK = 200
UNKNOWN = "a moment that was not noted"
_MOMENT = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z")


class _Opened(BaseModel):
    """What publish.lua notes when it opens the breaker."""

    model_config = ConfigDict(strict=True)
    at: MomentText
    bans: int = Field(ge=0)
    decided: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Status:
    """`opened_at` is None while it is closed; `bans` of `decided` are those that opened it."""

    opened_at: str | None
    bans: int
    decided: int
    withheld: int


@dataclass(frozen=True, slots=True)
class Closed:
    """What became of the withheld bans. `superseded` ones had another verdict by then, or a person's decision."""

    applied: int
    superseded: int
    discarded: int


def status(client: redis.Redis) -> Status:
    """Reads it. Raises UnavailableError."""
    with bus.translated():
        raw: Any = client.hget(bus.WITHHELD, OPENED.decode())
        fields: Any = client.hlen(bus.WITHHELD)
    if raw is None:
        return Status(None, 0, 0, fields)
    try:
        said = _Opened.model_validate_json(raw)
    except ValueError:  # whatever stands there, publishing takes it for open
        return Status(UNKNOWN, 0, 0, fields - 1)
    return Status(said.at, said.bans, said.decided, fields - 1)


def withheld(client: redis.Redis) -> Iterator[str]:
    """The content IDs whose bans are withheld."""
    with bus.translated():
        # With the values: Redis before 7.4 cannot leave them out.
        for content_id, _ in client.hscan_iter(bus.WITHHELD, count=CHUNK):
            if content_id != OPENED:
                yield _text(content_id)


def close(client: redis.Redis, *, apply: bool, verdict_ttl_s: int) -> Closed | None:
    """Closes the breaker and begins to count anew; safe to repeat where it was interrupted. None, and nothing done,
    where it is closed: the script finds that out, so that whoever may not close it learns so in a drill.

    Args:
        apply: let every withheld ban take effect; else they keep their verdict, held for a person.
        verdict_ttl_s: how long the verdicts of applied bans can be looked up.

    Raises UnavailableError: it is still open then, and what is not yet applied is withheld.
    """
    script = client.register_script(bus.script("close"))
    applied = superseded = 0
    while True:
        if apply:
            outcomes = _release_all(client, verdict_ttl_s)
            applied += outcomes.count(b"published")
            superseded += outcomes.count(b"superseded")
        with bus.translated():
            closed, discarded = script(keys=[bus.WITHHELD, bus.BAN_WINDOW], args=[int(not apply)])
        if closed == 2:
            return None
        if closed:
            return Closed(applied, superseded, discarded)


def _release_all(client: redis.Redis, verdict_ttl_s: int) -> list[bytes]:
    """Applies what is withheld now; more may follow while it works."""
    script = client.register_script(bus.script("release"))
    outcomes: list[bytes] = []
    cursor = 0
    while True:
        with bus.translated(), client.pipeline(transaction=False) as pipeline:
            reply: Any = client.hscan(bus.WITHHELD, cursor, count=CHUNK)
            cursor, bans = reply
            for content_id, ban in bans.items():
                if content_id != OPENED:
                    _release(script, pipeline, content_id, ban, verdict_ttl_s)
            outcomes += pipeline.execute()
        if cursor == 0:
            return outcomes


def _release(script: Script, pipeline: Pipeline, content_id: bytes, ban: bytes, verdict_ttl_s: int) -> None:
    decided_at, _, raw = ban.partition(b" ")
    document = read(raw)
    # What else stands there, whoever wrote it, bans nobody.
    ours = (
        isinstance(document, Verdict)
        and document.ban
        and document.content_id.encode() == content_id
        and _MOMENT.fullmatch(decided_at) is not None
    )
    digest = (document.content_sha256 or "") if document is not None else ""
    script(
        keys=[bus.WITHHELD, bus.verdict_key(_text(content_id)), bus.VERDICTS, bus.OVERRIDES, bus.KNOWN, bus.UPLOADS],
        args=[content_id, verdict_ttl_s, digest, ban, int(ours)],
        client=pipeline,
    )


def _text(content_id: bytes) -> str:
    return content_id.decode("utf-8", "backslashreplace")
