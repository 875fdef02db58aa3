"""What a challenger is held to, from what two versions were fitted for."""

from typing import Any

import pytest

from trainer.standards import Standard, stricter
from worker.model.manifest import BaseRef, ManifestDraft


def draft(risked: float | None = None, *, threshold: float | None = None, **aims: float) -> ManifestDraft:
    """A version fitted for a share of risked uploads, or for none; `threshold` was set by hand."""
    operated: dict[str, Any] = {"aims": aims}
    if risked is not None:
        shares = {"approved": 0.9 - risked, "not_suitable": 0.1, "risked": risked}
        operated |= {"prevalence_from": "given", "prevalence": shares}
    base = BaseRef(sha256="0" * 64, bytes=1, source="none")
    return ManifestDraft(network="small", base=base, metrics={"operating": operated}, ban_threshold=threshold)


@pytest.mark.parametrize(("now", "before"), [(0.2, 0.02), (0.02, 0.2)])
def test_where_both_name_a_prevalence_bans_are_judged_at_the_smaller_and_both_are_told(
    now: float, before: float
) -> None:
    """A slip of the schedule, 0.2 for 0.02, would let a tenth of the precision pass."""
    held_to = stricter(draft(now), draft(before))
    assert held_to.at is not None and held_to.at.risked == 0.02
    (note,) = held_to.notes
    assert f"fitted for {now:g}" in note and f"champion for {before:g}" in note
    assert held_to.stricter_bans == (now < before)


def test_the_same_is_told_nothing_of() -> None:
    held_to = stricter(draft(0.02, ban_precision=0.95), draft(0.02, ban_precision=0.95))
    assert (held_to.notes, held_to.stricter_bans, held_to.ban_precision) == ((), False, 0.95)
    assert stricter(draft(), draft()) == Standard()


def test_a_milder_review_threshold_is_told() -> None:
    (note,) = stricter(draft(review_recall=0.8), draft(review_recall=0.95)).notes
    assert "0.95" in note and "0.8" in note
    assert stricter(draft(review_recall=0.99), draft(review_recall=0.95)).notes == ()


@pytest.mark.parametrize(
    "challenger",
    [draft(ban_precision=0.99), draft(0.02, ban_precision=0.95), draft(threshold=0.9, ban_precision=0.95)],
    ids=["a higher precision", "a prevalence", "a threshold set by hand"],
)
def test_whoever_asks_more_of_bans_means_fewer_of_them(challenger: ManifestDraft) -> None:
    assert stricter(challenger, draft(ban_precision=0.95)).stricter_bans
    assert not stricter(draft(ban_precision=0.95), challenger).stricter_bans
