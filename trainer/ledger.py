"""What a growing data set has learned so far: `retrain.json` and `left-out.jsonl` beside the label folders.

    cursor     up to which entry of moderation:corrections all is in the set, left out, or waiting
    waiting    decisions whose picture could not be had, or not decoded at first: tried again by the next run
    fitted     the last version that went the whole way, the pictures it was fitted and tested on, and whether the gate
               or a rollback kept it out of service

Replaced in one step, so a run killed at any moment leaves the one before or the one after. Knows no Redis, pictures
or training.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.errors import DataError
from worker.model import files

FILE: Final = "retrain.json"
LEFT_OUT_FILE: Final = "left-out.jsonl"
SCHEMA: Final = 1
START: Final = "0"
"""The cursor before the first correction."""


class Decision(BaseModel):
    """A person's decision: the label of a content ID, by the entry `correction`; `sha256` is of the bytes judged.

    Of one that waits, `kept_back` says for which reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    correction: str = Field(pattern=r"^\d+-\d+$")
    content_id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")
    label: Literal["approved", "not_suitable", "risked"]
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    kept_back: str | None = None


class Fitted(BaseModel):
    """A version, and digests of its training and test pictures with their labels; why it was `refused`, if it was."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    train: str
    test: str
    refused: str | None = None


class Ledger(BaseModel):
    """The state of a data set. Frozen: `model_copy(update=…)` makes the next one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    cursor: str = Field(default=START, pattern=r"^(0|\d+-\d+)$")
    waiting: tuple[Decision, ...] = ()
    fitted: Fitted | None = None


class LeftOut(NamedTuple):
    """A decision whose picture is not in the set, with the reason (`not_found`, `mismatched`, `unreadable` …)."""

    decision: Decision
    reason: str
    detail: str


def entry(correction: str) -> tuple[int, int]:
    """The ID of a correction's entry, or the cursor, as what greater ones come after."""
    milliseconds, _, number = correction.partition("-")
    return int(milliseconds), int(number or 0)


def before(cursor: str) -> str:
    """The greatest ID of an entry below that of the cursor, which is not START."""
    milliseconds, number = entry(cursor)
    return f"{milliseconds}-{number - 1}" if number else f"{milliseconds - 1}-{2**64 - 1}"


def latest(block: Iterable[Decision], waiting: Iterable[Decision]) -> tuple[dict[str, Decision], set[str]]:
    """The decision that holds for each ID of a block; and the IDs where it names no bytes, and an earlier one did, with
    another label. With the same label it says no more than that one."""
    holds: dict[str, Decision] = {}
    before, doubtful = {decision.content_id: decision for decision in waiting}, set()
    for decision in block:
        earlier = before.get(decision.content_id)
        if decision.sha256 is None and earlier is not None and earlier.sha256 is not None:
            if earlier.label == decision.label:
                continue
            doubtful.add(decision.content_id)
        holds.pop(decision.content_id, None)  # a later decision replaces an earlier one, and comes after it
        holds[decision.content_id] = before[decision.content_id] = decision
    return holds, doubtful


def read(data: Path) -> Ledger:
    """The ledger of the data set in `data`, an empty one where there is none. Raises DataError where it is damaged."""
    path = data / FILE
    try:
        return Ledger.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Ledger()
    except (ValidationError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise DataError(
            f"{str(path)!r} cannot be read ({why}): restore it, or delete it, and all corrections are gone through "
            "again, which fetches only what the data set lacks."
        ) from error


def save(data: Path, ledger: Ledger) -> None:
    """Puts it in place of the one before; on disk when this returns."""
    # What is none is left out: releases from before `refused` read a ledger that says nothing of it.
    files.replace(data / FILE, ledger.model_dump_json(by_alias=True, indent=1, exclude_none=True).encode() + b"\n")


def note_left_out(data: Path, left: Iterable[LeftOut]) -> None:
    """Adds a line each to the log of what is not in the set. A run that goes on after a kill may repeat lines."""
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [
        json.dumps({"at": at, "reason": out.reason, "detail": out.detail, **out.decision.model_dump()}) for out in left
    ]
    if lines:
        files.append_line(data / LEFT_OUT_FILE, "\n".join(lines).encode())
