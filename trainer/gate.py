"""May the challenger take the champion's place? Their verdicts on the same test pictures in, a decision out.

The challenger has to be *shown* not to be worse: the exact one-sided 95 % bound (`paired`) of the difference must lie
above minus the margin, for accuracy, for the recall of risked, and for the risked pictures that are banned or seen by a
person; and its bans must be right as often as it claims. What a change of thresholds moves on purpose or by chance is
refused only where it is shown to have gone too far: fewer bans of risked, more held for people. One that bans nothing
does not follow one that rightly bans, or people would have all of it at once; and one whose data set lacks much of the
champion's is compared on what is left of it, which shows nothing.
Too few pictures show nothing, and the decision says how many are missing. A picture counts as called what the contract
says: risked from the ban threshold on, else the likeliest label. Rules only: reads no file and changes no store.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final

import numpy as np

from trainer import checks, intervals, operating, paired
from trainer.checks import Check, Decision
from trainer.operating import Prevalence, Rates
from trainer.outcomes import Verdict
from trainer.standards import Standard
from worker.errors import UsageError
from worker.model.labels import LABELS, RISKED

MARGIN: Final = 0.02
"""How much worse a challenger may truly be and still be called as good."""

TEST_KEPT: Final = 0.9
"""The part of the champion's test pictures that must be among the challenger's. What looks like a new training picture
leaves the test, and what has new content changes; an unmounted or wrong folder has next to none of them."""

TRAINING_KEPT: Final = 0.8
"""The least number of training pictures of a label, as a part of the champion's."""

HELD_TIMES: Final = 1.5
"""How many times as much as the champion a challenger may hold for people before somebody has to want that."""

Judged = Mapping[str, tuple[int, Verdict]]
"""By a picture's SHA-256: its true label and a version's verdict."""


def check_margin(margin: float) -> None:
    """Raise UsageError unless 0 < margin < 1."""
    if not 0 < margin < 1:
        raise UsageError(f"The margin {margin:g} is no difference of shares: give one above 0 and below 1.")


def judge(challenger: Judged, champion: Judged, *, margin: float = MARGIN, held_to: Standard | None = None) -> Decision:
    """Compare two versions on the pictures that both were tested on under the same true label.

    What people see is compared on those of which it is known of both. Raises UsageError for a margin that is none.
    """
    check_margin(margin)
    held_to = held_to or Standard()
    common = _common(challenger, champion)
    risked = [key for key in common if challenger[key][0] == RISKED]
    found = [
        _not_worse("accuracy", _differences(challenger, champion, common, _right), len(common), margin),
        _not_worse("recall of risked", _differences(challenger, champion, risked, _right), len(risked), margin),
    ]
    review, notes = _of_review(challenger, champion, common, margin, held_to.at)
    bans, also = _of_bans(challenger, champion, risked, margin, held_to)
    notes += [*also, *held_to.notes]
    if other := len(challenger) - len(common):
        notes.append(f"{other} test pictures of the challenger were not judged by the champion under the same label.")
    return Decision((*found, *review, *bans), margin, len(common), tuple(notes))


def kept(
    challenger: Collection[str], champion: Collection[str], training: tuple[Mapping[str, int], Mapping[str, int]]
) -> list[Check]:
    """Is what the champion was made of and tested on still there?

    An empty folder in the place of the data set leaves corrections alone, mostly the champion's mistakes: whatever is
    fitted on them passes on them. `challenger` and `champion` are the SHA-256 of their test pictures, `training` how
    many training pictures of each label the two have, in this order; what is not known is empty, and not judged.
    """
    made = []
    if champion:
        have = sum(key in challenger for key in champion)
        made.append(_kept(checks.TEST_KEPT, have, len(champion), TEST_KEPT))
    now, before = training
    if now and (had := [label for label in LABELS if before.get(label)]):
        least = min(had, key=lambda label: now.get(label, 0) / before[label])
        made.append(_kept(checks.TRAINING_KEPT + least, now.get(least, 0), before[least], TRAINING_KEPT))
    return made


def not_slid(challenger: Judged, anchor: Judged, margin: float) -> list[Check]:
    """Is it worse by more than the margin than the version that last came into service without the gate?

    Each of many versions may be a little worse than the one before; this stops them together. Here it is being worse
    that has to be shown, by the exact one-sided 95 % bound, for the anchor's test pictures do not become more. Empty
    where the two have no picture in common.
    """
    common = _common(challenger, anchor)
    risked = [key for key in common if challenger[key][0] == RISKED]
    seen = _known(challenger, anchor, risked)
    made = []
    for name, keys, good in zip(checks.SINCE, (common, risked, seen), (_right, _right, _found), strict=True):
        if keys:
            made.append(_not_shown_worse(name, _differences(challenger, anchor, keys, good), len(keys), margin))
    return made


def _of_review(
    challenger: Judged, champion: Judged, common: list[str], margin: float, at: Prevalence | None
) -> tuple[list[Check], list[str]]:
    """Whether people see what they should, and not too much."""
    known = _known(challenger, champion, common)
    if not known:
        return [], ["What people would see is known of none of these pictures for both versions: not compared."]
    risked = [key for key in known if challenger[key][0] == RISKED]
    labels = np.array([challenger[key][0] for key in known], np.int64)
    now, before = (
        Rates.count(np.array([bool(version[key][1].reviewed) for key in known], np.bool_), labels)
        for version in (challenger, champion)
    )
    shares = np.array(at.shares) if at is not None else now.of / now.of.sum()
    # Each bound at half the error, so that both hold together, whatever the two versions have to do with each other.
    error = (1 - intervals.LEVEL) / 2
    least, most = now.bounds(shares, error)[0], HELD_TIMES * before.bounds(shares, error)[1]
    held = Check(
        checks.HELD,
        len(known),
        int(now.hits.sum()),
        int(before.hits.sum()),
        -now.mean(shares),
        -least,
        -most,
        passed=least <= most,
        missing=0 if least <= most else None,
    )
    found = _not_worse(checks.FOUND, _differences(challenger, champion, risked, _found), len(risked), margin)
    return [found, held], []


def _of_bans(
    challenger: Judged, champion: Judged, risked: list[str], margin: float, held_to: Standard
) -> tuple[list[Check], list[str]]:
    """Whether bans are right, and whether what was banned still is."""
    # Of all the challenger's own test pictures: nothing is paired here.
    labels = np.array([label for label, _ in challenger.values()], np.int64)
    bans = Rates.count(np.array([verdict.banned for _, verdict in challenger.values()], np.bool_), labels)
    before = sum(champion[key][1].banned for key in risked)
    if not bans.hits.any():
        if before:
            return [Check(checks.BANS, len(risked), 0, before, 0.0, 0.0, 0.0, passed=False, missing=None)], []
        return [], ["The challenger bans none of the test pictures, so there is no precision of bans to hold."]
    precise = _ban_precision(bans, held_to.ban_precision - margin, held_to.at)
    fewer = _differences(challenger, champion, risked, lambda _, verdict: verdict.banned)
    if held_to.stricter_bans:
        now = before + fewer[0] - fewer[1]
        said = f"It bans {now} of {len(risked)} risked pictures, the champion {before}; more was asked of its bans."
        return [precise], [said] if now < before else []
    return [precise, _not_shown_worse(checks.BANS_OF_RISKED, fewer, len(risked), margin)], []


def _common(challenger: Judged, other: Judged) -> list[str]:
    return [key for key in challenger if key in other and other[key][0] == challenger[key][0]]


def _known(challenger: Judged, other: Judged, keys: list[str]) -> list[str]:
    return [key for key in keys if None not in (challenger[key][1].reviewed, other[key][1].reviewed)]


def _right(label: int, verdict: Verdict) -> bool:
    return verdict.called == label


def _found(_: int, verdict: Verdict) -> bool:
    return verdict.banned or bool(verdict.reviewed)


def _differences(
    challenger: Judged, champion: Judged, keys: list[str], good: Callable[[int, Verdict], bool]
) -> tuple[int, int]:
    """Pictures that only the challenger has `good`, and those that only the champion has so."""
    pairs = [(good(*challenger[key]), good(*champion[key])) for key in keys]
    return sum(new and not old for new, old in pairs), sum(old and not new for new, old in pairs)


def _not_worse(name: str, differences: tuple[int, int], pictures: int, margin: float) -> Check:
    gained, lost = differences
    bound = paired.lower_bound(gained, lost, pictures)
    passed = bound > -margin
    enough = pictures if passed else paired.enough_pictures(gained, lost, pictures, margin)
    missing = None if enough is None else max(enough - pictures, 0 if passed else 1)
    value = (gained - lost) / pictures if pictures else 0.0
    return Check(name, pictures, gained, lost, value, bound, -margin, passed, missing)


def _not_shown_worse(name: str, differences: tuple[int, int], pictures: int, margin: float) -> Check:
    gained, lost = differences
    bound = -paired.lower_bound(lost, gained, pictures)
    value = (gained - lost) / pictures if pictures else 0.0
    passed = bound > -margin
    return Check(name, pictures, gained, lost, value, bound, -margin, passed, 0 if passed else None)


def _kept(name: str, have: int, had: int, needed: float) -> Check:
    passed = have >= needed * had
    return Check(name, had, have, had - have, have / had, have / had, needed, passed, 0 if passed else None)


def _ban_precision(bans: Rates, needed: float, at: Prevalence | None) -> Check:
    right, every = int(bans.hits[RISKED]), int(bans.hits.sum())
    missing: int | None
    if at is None:
        value, bound = right / every, intervals.lower_bound(right, every)
        missing = _more_bans(right, every, needed)
    else:
        error = 1 - intervals.LEVEL
        value, bound = operating.precision(bans, at) or 0.0, operating.precision_bounds(bans, at, error)[0]
        harmless = int(bans.of.sum() - bans.of[RISKED])
        wanted = operating.harmless_needed(bans, at, needed, error) if value > needed else None
        missing = None if wanted is None else max(wanted - harmless, 1)
    passed = bound > needed
    return Check(
        checks.BAN_PRECISION, every, right, every - right, value, bound, needed, passed, 0 if passed else missing
    )


def _more_bans(right: int, bans: int, needed: float) -> int | None:
    """About how many more bans, right as often, would put the bound above `needed`."""
    if right / bans <= needed:
        return None
    count = bans
    while count < paired.PICTURES_MAX:
        count = max(count + 1, round(count * 1.02))
        if intervals.lower_bound(int(right * count / bans), count) > needed:
            return count - bans
    return None
