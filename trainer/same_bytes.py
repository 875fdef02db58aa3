"""One label for the same bytes under every ID, as the worker judges them: the latest decision's that names them.

A decision without a SHA-256 labels the file of its own ID alone, and gives way where the same bytes lie elsewhere.
"""

from collections.abc import Sequence

from trainer import ledger
from trainer.ledger import Decision
from trainer.spots import Spots, sha256


def agree(spots: Spots, placed: Sequence[Decision], later: Sequence[Decision]) -> tuple[int, list[Decision]]:
    """Moves the same bytes under other IDs to the label of what was `placed`, or of the decisions `later` than that.

    Returns how many moved, and the decisions that gave way: their pictures have left the set.
    """
    moved = 0
    for decision in placed:
        if label := _label(spots, decision, later):
            moved += spots.label_same_bytes(decision.content_id, label)
    gave_way = []
    for decision in reversed(placed):
        if decision.sha256 is None and spots.contradicted(decision.content_id):
            spots.drop(decision.content_id)
            gave_way.append(decision)
    return moved, gave_way


def _label(spots: Spots, decision: Decision, later: Sequence[Decision]) -> str | None:
    """That of the decision's bytes: the latest's that names them, under whichever ID; None where none does."""
    digest = sha256(spots.of(decision.content_id)[0].path) if later else None
    for other in reversed(later):
        if ledger.entry(other.correction) <= ledger.entry(decision.correction):
            break
        if other.sha256 is not None and other.sha256 == digest:
            return other.label
    return decision.label if decision.sha256 is not None else None
