"""Who was champion, when and why, and which one came before: the rules of history.jsonl. Reads and writes no file."""

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from worker.errors import WeightsError


class HistoryEntry(BaseModel):
    """One promotion or rollback: when (UTC), by whom, which way, from which champion to which, and why.

    `gate` has the figures that a promotion was decided on, `forced` says that it went ahead against them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    by: str
    action: Literal["promote", "rollback"]
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

    What follows the last line's end was cut short by a crash and never took effect.
    """
    entries = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            entries.append(HistoryEntry.model_validate_json(line))
        except ValidationError:
            raise WeightsError(f"line {number} of history.jsonl is damaged: put it right by hand") from None
    return entries


def trail(history: list[HistoryEntry], champion: str | None) -> list[str]:
    """The champions in effect, oldest first, up to the one in service: a promotion adds one, a rollback removes one.

    An entry is written before it takes effect; what the next one (or the champion) does not start from never did.
    """
    line: list[str] = []
    for entry in history:
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
