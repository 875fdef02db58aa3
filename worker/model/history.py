"""Who was champion, when and why, and which one came before: the rules of history.jsonl. Reads and writes no file."""

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from worker.errors import WeightsError
from worker.model import files


class HistoryEntry(BaseModel):
    """One promotion or rollback: when (UTC), by whom, which way, from which champion to which, and why.

    `gate` has the figures that a promotion was decided on, `forced` says that it went ahead against them. A `refit`
    leads from the champion to itself: it was fitted again, and is held to something else, or tested on other pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    by: str
    action: Literal["promote", "rollback", "refit"]
    from_: str | None = Field(alias="from")
    to: str
    why: str
    forced: bool = False
    gate: dict[str, Any] | None = None

    def to_json(self) -> bytes:
        """The line without its end; `forced` and `gate` stand there only where they say something."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True).encode()


def parse(content: bytes) -> list[HistoryEntry]:
    """The entries of a history file, oldest first. WeightsError where a line is damaged.

    What a crash cut short at the end never took effect.
    """
    entries = []
    for number, line in enumerate(files.whole_lines(content), start=1):
        try:
            entries.append(HistoryEntry.model_validate_json(line))
        except ValidationError:
            raise WeightsError(f"line {number} of history.jsonl is damaged: put it right by hand") from None
    return entries


def moves(history: list[HistoryEntry]) -> list[HistoryEntry]:
    """The entries that say which version serves."""
    return [entry for entry in history if entry.action != "refit"]


def in_effect(history: list[HistoryEntry], champion: str | None) -> list[HistoryEntry]:
    """The promotions and rollbacks that took effect, oldest first.

    An entry is written before it takes effect; one whose version is not what the next one starts from, or not the
    champion, never did, such as where the disk was full; or somebody has undone it by hand.
    """
    moved = moves(history)
    came_next = [*(entry.from_ for entry in moved), champion][1:]
    return [entry for entry, current in zip(moved, came_next, strict=False) if entry.to == current]


def trail(history: list[HistoryEntry], champion: str | None) -> list[str]:
    """The champions in effect, oldest first, up to the one in service: a promotion adds one, a rollback removes one.

    It goes by what each entry starts from, as `in_effect` does, and so copes with champions named by hand, too.
    """
    line: list[str] = []
    for entry in moves(history):
        _reconcile(line, entry.from_)
        if entry.action == "rollback" and len(line) >= 2 and line[-2] == entry.to:
            line.pop()
        else:
            line.append(entry.to)
    _reconcile(line, champion)
    return line


def _reconcile(line: list[str], current: str | None) -> None:
    if current is None:
        line.clear()
    elif current in line:
        while line[-1] != current:
            line.pop()
    else:
        line.append(current)
