"""From probabilities to what happens: the rules of the contract, section 2, and nothing else.

Numbers in, a decision out. Does no IO and knows no Redis, network or picture.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from worker.model.labels import LABELS, RISKED
from worker.verdict import PLACEMENTS, Label, Note, Placement, ReviewPlacement


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A weights version's thresholds on p(risked). Without `ban` nothing is ever banned."""

    ban: float | None
    review: float | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a picture, and which of its frames decided."""

    label: Label
    ban: bool
    review: bool
    placement: Placement
    reasons: tuple[Note, ...]
    frame: int


def decide(
    frames: Sequence[Sequence[float]],
    thresholds: Thresholds,
    *,
    review_placement: ReviewPlacement,
    audited: bool,
) -> Decision:
    """Decides one picture from its frames' probabilities (in label order; frame with the highest p(risked) decides)."""
    frame = max(range(len(frames)), key=lambda index: frames[index][RISKED])
    probabilities = frames[frame]
    risk = probabilities[RISKED]
    ban = thresholds.ban is not None and risk >= thresholds.ban
    if ban:
        return Decision("risked", True, False, "removed", (), frame)
    label = LABELS[max(range(len(LABELS)), key=probabilities.__getitem__)]
    wanted = label == "risked" or (thresholds.review is not None and risk >= thresholds.review)
    placement = review_placement if wanted else PLACEMENTS[label]
    reasons: tuple[Note, ...] = ("audit_sample",) if audited and not wanted else ()
    return Decision(label, False, wanted or audited, placement, reasons, frame)


def picked_for_audit(content_id: str, share: float) -> bool:
    """Whether this picture is in the random audit: the same answer whenever and wherever it is asked."""
    drawn = int.from_bytes(hashlib.blake2b(content_id.encode(), digest_size=8, key=b"audit").digest())
    return drawn < share * 2**64
