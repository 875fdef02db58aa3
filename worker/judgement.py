"""What is said about a picture: scores, or the reason why there are none, in; a document, or another attempt, out.

Puts the version's thresholds, the deployment's rules and the contract's rules (`policy`) together. Does no IO; knows no
stages, threads or queues.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from worker.classifier import Scores
from worker.entry import PASSING_REASONS, Entry, pause_ms
from worker.errors import UndecidedReason
from worker.policy import Thresholds, decide, picked_for_audit
from worker.verdict import Probabilities, ReviewPlacement, Undecided, Verdict


@dataclass(frozen=True, slots=True)
class Rules:
    """What the deployment, not the weights version, says about decisions. Times in seconds."""

    review_placement: ReviewPlacement
    audit_share: float
    not_found_retry_s: float
    fetch_failed_retry_s: float


class Picture(Protocol):
    """What is known of it so far: where it came from, the SHA-256 of its bytes, and how many frames it has."""

    @property
    def entry(self) -> Entry: ...

    @property
    def content_sha256(self) -> str | None: ...

    @property
    def frames(self) -> int: ...


def decided(picture: Picture, scores: Scores, rules: Rules) -> Verdict:
    """The verdict by the version that scored it."""
    manifest = scores.version.manifest
    thresholds = Thresholds(manifest.ban_threshold, manifest.review_threshold)
    frames = scores.probabilities.tolist()
    decision = decide(
        frames,
        thresholds,
        review_placement=rules.review_placement,
        audited=picked_for_audit(picture.entry.content_id, rules.audit_share),
    )
    approved, not_suitable, risked = (round(probability, 6) for probability in frames[decision.frame])
    return Verdict(
        content_id=picture.entry.content_id,
        label=decision.label,
        ban=decision.ban,
        review=decision.review,
        placement=decision.placement,
        reasons=decision.reasons,
        probabilities=Probabilities(approved=approved, not_suitable=not_suitable, risked=risked),
        weights=manifest.id,
        engine=scores.version.engine,
        ban_threshold=thresholds.ban,
        review_threshold=thresholds.review,
        content_sha256=picture.content_sha256,
        frames=picture.frames,
        enqueued_at=_utc(picture.entry.enqueued_ms),
    )


def undecided(picture: Picture, reason: UndecidedReason, rules: Rules) -> Undecided:
    """The document of a picture that nothing could be found out about: a person's to decide."""
    return Undecided(
        content_id=picture.entry.content_id,
        placement=rules.review_placement,
        reasons=(reason,),
        weights=None,
        engine=None,
        content_sha256=picture.content_sha256,
        frames=picture.frames,
        enqueued_at=_utc(picture.entry.enqueued_ms),
    )


def may_pass(reason: UndecidedReason) -> bool:
    """Whether another attempt may help: the object may not be visible yet, the store may come back."""
    return reason in PASSING_REASONS


def pause_before_next_ms(entry: Entry, reason: UndecidedReason, rules: Rules, now_ms: int) -> int | None:
    """How long to wait before another attempt after a `reason` that may pass; None where it has lasted too long."""
    window_s = rules.not_found_retry_s if reason == "not_found" else rules.fetch_failed_retry_s
    failing_ms = now_ms - entry.failing_since_ms.get(reason, now_ms)
    left_ms = int(window_s * 1000) - failing_ms
    return min(pause_ms(entry.attempt), left_ms) if left_ms > 0 else None


def _utc(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
