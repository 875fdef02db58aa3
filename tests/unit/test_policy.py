"""The contract's section 2 as properties: which label, who is banned, who is asked, where the picture goes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.model.labels import LABELS, RISKED
from worker.policy import Decision, Thresholds, decide, picked_for_audit
from worker.verdict import ReviewPlacement

Frame = tuple[float, float, float]

FRAMES = st.lists(
    st.tuples(*[st.floats(0.001, 1.0)] * 3).map(lambda p: (p[0] / sum(p), p[1] / sum(p), p[2] / sum(p))),
    min_size=1,
    max_size=8,
)
THRESHOLD = st.none() | st.floats(0.0, 1.0)
THRESHOLDS = st.builds(Thresholds, ban=THRESHOLD, review=THRESHOLD)
PLACEMENTS = st.sampled_from(["held", "author_only"])
USUAL = Thresholds(ban=0.6, review=0.3)

SURELY_RISKED: Frame = (0.05, 0.05, 0.9)
PROBABLY_RISKED: Frame = (0.25, 0.25, 0.5)
SUSPECT: Frame = (0.5, 0.15, 0.35)
HARMLESS: Frame = (0.9, 0.05, 0.05)
UNSUITABLE: Frame = (0.1, 0.8, 0.1)


def judge(
    *frames: Frame, thresholds: Thresholds = USUAL, placement: ReviewPlacement = "held", audited: bool = False
) -> Decision:
    """`decide` with the settings most tests share."""
    return decide(frames, thresholds, review_placement=placement, audited=audited)


@settings(deadline=None)
@given(FRAMES, THRESHOLDS, PLACEMENTS, st.booleans())
def test_only_a_risked_picture_is_ever_banned(
    frames: list[Frame], thresholds: Thresholds, placement: ReviewPlacement, audited: bool
) -> None:
    """A ban is always labelled risked, removes the picture, asks nobody, and had p(risked) at the threshold."""
    decision = decide(frames, thresholds, review_placement=placement, audited=audited)
    if decision.ban:
        assert (decision.label, decision.placement, decision.review) == ("risked", "removed", False)
        assert thresholds.ban is not None
        assert frames[decision.frame][RISKED] >= thresholds.ban
    else:
        assert decision.placement != "removed"


@settings(deadline=None)
@given(FRAMES, THRESHOLD, PLACEMENTS, st.booleans())
def test_without_a_ban_threshold_nothing_is_banned(
    frames: list[Frame], review: float | None, placement: ReviewPlacement, audited: bool
) -> None:
    """A version that was not calibrated for bans holds for a person what it calls risked."""
    decision = decide(frames, Thresholds(None, review), review_placement=placement, audited=audited)
    assert not decision.ban
    if decision.label == "risked":
        assert (decision.review, decision.placement) == (True, placement)


@settings(deadline=None)
@given(FRAMES, THRESHOLDS, PLACEMENTS, st.booleans())
def test_label_review_and_placement_follow_the_contract(
    frames: list[Frame], thresholds: Thresholds, placement: ReviewPlacement, audited: bool
) -> None:
    """The table, written down a second time."""
    decision = decide(frames, thresholds, review_placement=placement, audited=audited)
    risk = max(frame[RISKED] for frame in frames)
    probabilities = frames[decision.frame]
    ban = thresholds.ban is not None and risk >= thresholds.ban
    likeliest = {label for label, p in zip(LABELS, probabilities, strict=True) if p == max(probabilities)}
    assert decision.ban == ban
    assert decision.label == "risked" if ban else decision.label in likeliest
    for_a_person = not ban and (
        decision.label == "risked" or (thresholds.review is not None and risk >= thresholds.review)
    )
    assert decision.review == (not ban and (for_a_person or audited))
    by_label = {"approved": "collective", "not_suitable": "author_only"}
    wanted = "removed" if ban else placement if for_a_person else by_label[decision.label]
    assert decision.placement == wanted
    assert decision.reasons == (("audit_sample",) if audited and not ban and not for_a_person else ())


@settings(deadline=None)
@given(FRAMES, THRESHOLDS, PLACEMENTS)
def test_the_most_dangerous_frame_decides(
    frames: list[Frame], thresholds: Thresholds, placement: ReviewPlacement
) -> None:
    """An animation is judged by its frame with the highest p(risked), as if that were all of it."""
    decision = decide(frames, thresholds, review_placement=placement, audited=False)
    assert frames[decision.frame][RISKED] == max(frame[RISKED] for frame in frames)
    alone = decide([frames[decision.frame]], thresholds, review_placement=placement, audited=False)
    assert (alone.label, alone.ban, alone.review, alone.placement) == (
        decision.label, decision.ban, decision.review, decision.placement,
    )  # fmt: skip


def test_the_table_by_example() -> None:
    """One picture a row of the contract's table."""
    assert judge(SURELY_RISKED) == Decision("risked", True, False, "removed", (), 0)
    assert judge(PROBABLY_RISKED) == Decision("risked", False, True, "held", (), 0)
    assert judge(SUSPECT) == Decision("approved", False, True, "held", (), 0)
    assert judge(SUSPECT, placement="author_only") == Decision("approved", False, True, "author_only", (), 0)
    assert judge(HARMLESS) == Decision("approved", False, False, "collective", (), 0)
    assert judge(UNSUITABLE) == Decision("not_suitable", False, False, "author_only", (), 0)
    assert judge(HARMLESS, audited=True) == Decision("approved", False, True, "collective", ("audit_sample",), 0)
    assert judge(SURELY_RISKED, audited=True).ban
    assert judge(HARMLESS, SURELY_RISKED, HARMLESS).frame == 1


def test_a_threshold_is_reached_by_equality() -> None:
    """p(risked) equal to a threshold counts as above it."""
    at = (0.2, 0.2, 0.6)
    assert judge(at).ban
    assert judge((0.6, 0.1, 0.3)).review


def test_a_risk_that_is_not_the_likeliest_label_still_bans() -> None:
    """The ban threshold, not the likeliest label, makes a picture risked."""
    decision = judge((0.55, 0.0, 0.45), thresholds=Thresholds(ban=0.4, review=0.2))
    assert (decision.label, decision.ban) == ("risked", True)


def test_the_audit_takes_about_the_asked_share() -> None:
    """Of 20,000 IDs, 5 % are picked give or take what chance allows; all of them at 1, none at 0."""
    ids = [f"content-{n}" for n in range(20_000)]
    picked = sum(picked_for_audit(content_id, 0.05) for content_id in ids)
    assert 0.04 * len(ids) < picked < 0.06 * len(ids)
    assert all(picked_for_audit(content_id, 1.0) for content_id in ids)
    assert not any(picked_for_audit(content_id, 0.0) for content_id in ids)


@settings(deadline=None)
@given(st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True), st.floats(0, 1), st.floats(0, 1))
def test_the_audit_is_stable_and_grows(content_id: str, one: float, other: float) -> None:
    """The same ID is picked whenever asked, and a larger share only adds to the picked."""
    less, more = sorted((one, other))
    assert picked_for_audit(content_id, less) == picked_for_audit(content_id, less)
    assert picked_for_audit(content_id, more) or not picked_for_audit(content_id, less)
