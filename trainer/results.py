"""What becomes of decisions, in names and sentences: kept apart from how pictures are collected.

    added · … · unchanged, or left out with a reason ─► the result that is counted, what people are told, whether the
    content store as a whole is at fault

Knows no files, no store and no Redis.
"""

from collections.abc import Sequence
from typing import Final, Literal, get_args

from trainer.ledger import Decision, LeftOut

EMPTY_FROM: Final = 20
"""Pictures to fetch of which a content store that has none of them is rather not the right one, or not mounted. Fewer
may all have been deleted by their authors."""

Result = Literal["added", "replaced", "moved", "unchanged", "gone", "mismatched", "doubtful", "unusable", "waiting"]
"""What became of a decision. `waiting`: the fault was not the picture's, or need not be, and the next run tries again:
the content store failed or did not have it for the first time, or the decoder failed on what may be a busy machine."""

RESULTS: Final[tuple[Result, ...]] = get_args(Result)
_OF_REASON: Final[dict[str, Result]] = {
    "not_found": "gone",
    "fetch_failed": "waiting",
    "mismatched": "mismatched",
    "doubtful": "doubtful",
}
_TRIED_TWICE: Final = frozenset({"not_found", "decode_timeout", "decoder_crashed"})
"""Not found counts among them because a store that half fails, one bucket or folder of it, says so of what it has."""

SAID: Final[dict[Result, str]] = {
    "gone": "pictures are gone from the content store and were not collected",
    "mismatched": "pictures are not the bytes that people decided on (another SHA-256) and were not collected",
    "doubtful": "pictures were decided on without a SHA-256, otherwise than before, and are not in the set",
    "unusable": "pictures cannot be used (no picture, broken, too large) and were not collected",
    "waiting": "pictures could not be had or decoded and are tried again by the next run",
}
"""What people are told of the content IDs that were not collected."""


def is_doubtful(became: Result | LeftOut) -> bool:
    """Whether it was left out because nobody knows which bytes were meant."""
    return isinstance(became, LeftOut) and became.reason == "doubtful"


def result_of(became: Result | LeftOut, decision: Decision) -> Result:
    """What is counted of it. Left out for good is what met the same fault twice, in two runs."""
    if not isinstance(became, LeftOut):
        return became
    if became.reason in _TRIED_TWICE and decision.kept_back != became.reason:
        return "waiting"
    return _OF_REASON.get(became.reason, "unusable")


def fault_of(made: Sequence[Result | LeftOut]) -> str:
    """What is the matter with the content store where every fetch of a block met the same; empty where nothing is."""
    lost = [became for became in made if isinstance(became, LeftOut) and not is_doubtful(became)]
    fetched = [*lost, *(became for became in made if became in ("added", "replaced"))]
    if lost and len(lost) == len(fetched):
        if all(one.reason == "fetch_failed" for one in lost):
            return (
                f"The content store failed for each picture it was asked for ({lost[0].detail.rstrip('.')}): mend it "
                "or MODERATION_CONTENT_URL, and the next run tries them again."
            )
        if len(lost) >= EMPTY_FROM and all(one.reason == "not_found" for one in lost):
            return (
                f"The content store has none of {len(lost)} pictures that it was asked for: check "
                "MODERATION_CONTENT_URL and what is mounted there; the next run tries them once more and leaves out "
                "what is gone then."
            )
    return ""
