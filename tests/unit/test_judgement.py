"""What a document says, and how long a picture that cannot be fetched is looked for; scores and entries in, no IO."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from worker import bus
from worker.classifier import Scores
from worker.entry import Entry
from worker.judgement import Rules, decided, may_pass, pause_before_next_ms, undecided

RULES = Rules(review_placement="author_only", audit_share=0.0, not_found_retry_s=30, fetch_failed_retry_s=3600)
NOW_MS = 1_764_000_000_000
ENTRY = Entry(bus.UPLOADS, b"1-0", "a", False, NOW_MS - 10**8)


@dataclass(frozen=True)
class Seen:
    """A picture of three frames."""

    entry: Entry = ENTRY
    content_sha256: str | None = "0" * 64
    frames: int = 3


def scores(*frames: tuple[float, float, float]) -> Scores:
    """By a version that bans from p(risked) 0.6 on and asks from 0.3 on."""
    manifest = SimpleNamespace(id="tiny-0", ban_threshold=0.6, review_threshold=0.3)
    return Scores(np.array(frames), cast(Any, SimpleNamespace(manifest=manifest, engine="cpu-fp32")))


def test_a_document_tells_the_frame_that_decided() -> None:
    """Its probabilities, each by its own name, and all that the picture and the version say."""
    document = decided(Seen(), scores((0.9, 0.06, 0.04), (0.1, 0.2, 0.7), (0.5, 0.4, 0.1)), RULES)
    assert (document.label, document.ban) == ("risked", True)
    shown = document.probabilities
    assert shown is not None and (shown.approved, shown.not_suitable, shown.risked) == (0.1, 0.2, 0.7)
    assert (document.content_sha256, document.frames) == ("0" * 64, 3)
    assert (document.weights, document.ban_threshold, document.review_threshold) == ("tiny-0", 0.6, 0.3)


def test_what_waits_for_a_person_waits_where_the_deployment_says() -> None:
    """Decided or not."""
    assert decided(Seen(), scores((0.5, 0.1, 0.4)), RULES).placement == "author_only"
    document = undecided(Seen(), "unreadable", RULES)
    assert (document.placement, document.reasons) == ("author_only", ("unreadable",))
    assert (document.content_sha256, document.frames) == ("0" * 64, 3)


def test_the_random_audit_takes_the_share_that_it_is_given() -> None:
    """All or none."""
    for share, review in ((0.0, False), (1.0, True)):
        document = decided(Seen(), scores((0.9, 0.05, 0.05)), replace(RULES, audit_share=share))
        assert (document.review, document.placement) == (review, "collective")


@pytest.mark.parametrize(("reason", "window_ms"), [("not_found", 30_000), ("fetch_failed", 3_600_000)])
def test_each_reason_has_its_own_time_to_pass(reason: Any, window_ms: int) -> None:
    """From when it was first given, whatever came before; the last attempt is at its end and no later."""
    assert may_pass(reason)
    other = {"not_found": "fetch_failed", "fetch_failed": "not_found"}[reason]
    for failing_ms, attempt, pause_ms in (
        (0, 0, 1000), (5000, 3, 8000), (window_ms - 100, 3, 100), (window_ms, 3, None), (window_ms + 1, 3, None),
    ):  # fmt: skip
        since = {reason: NOW_MS - failing_ms, other: 1} if failing_ms else {other: 1}
        entry = replace(ENTRY, attempt=attempt, failing_since_ms=since)
        assert pause_before_next_ms(entry, reason, RULES, NOW_MS) == pause_ms


def test_what_the_bytes_themselves_say_does_not_pass() -> None:
    """Another attempt would find the same."""
    assert not any(may_pass(reason) for reason in ("too_large", "unsupported_format", "unreadable", "decode_timeout"))
