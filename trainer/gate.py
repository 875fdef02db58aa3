"""May the challenger take the champion's place? Their verdicts on the same test pictures in, a decision out.

The challenger has to be *shown* not to be worse: the exact one-sided 95 % bound (`paired`) of the difference must lie
above minus the margin, for accuracy and for the recall of risked, and its bans must be right as often as it claims;
one that bans nothing does not follow one that rightly bans, or people would have all of it at once.
Too few pictures show nothing, and the decision says how many are missing. A picture counts as called what the contract
says: risked from the ban threshold on, else the likeliest label. Rules only: reads no file and changes no store.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from trainer import intervals, operating, paired
from trainer.operating import Prevalence, Rates
from trainer.outcomes import Verdict
from worker.errors import UsageError
from worker.model.labels import LABELS, RISKED

MARGIN: Final = 0.02
"""How much worse a challenger may truly be and still be called as good."""

BAN_PRECISION_WANTED: Final = 0.95
"""The precision of bans that is to hold where a version does not say which."""

Judged = Mapping[str, tuple[int, Verdict]]
"""By a picture's SHA-256: its true label and a version's verdict."""


@dataclass(frozen=True)
class Check:
    """One thing to be shown: `bound` must lie above `needed`. `missing` more pictures would probably show it, None
    where no number of them would; 0 where it passed. Of the precision of bans, `pictures` are the bans, `gained` those
    that are right, `lost` those that are not."""

    name: str
    pictures: int
    gained: int
    lost: int
    value: float
    bound: float
    needed: float
    passed: bool
    missing: int | None

    def sentence(self) -> str:
        """The figures, for a person."""
        if self.name == BANS:
            return (
                f"{self.name}: the champion bans {self.lost} of these risked pictures, the challenger none, and all "
                "would wait for a person: not shown; --force where that is meant"
            )
        if self.name in SINCE:
            seen = f"{self.name}: {self.value:+.4f} on {self.pictures} pictures, at most {self.bound:+.4f} (95 %)"
            return f"{seen}: {'not shown to be' if self.passed else 'shown to be'} worse by more than {-self.needed:g}"
        if self.name == BAN_PRECISION:
            seen = f"{self.name}: {self.value:.4f}, {self.gained} of {self.pictures} bans are right, "
            seen += f"95 % bound {self.bound:.4f}, needed above {self.needed:.4f}"
        else:
            seen = f"{self.name}: {self.value:+.4f} on {self.pictures} pictures ({self.gained} gained, {self.lost} "
            seen += f"lost), 95 % bound {self.bound:+.4f}, needed above {self.needed:+.4f}"
        if self.passed:
            return f"{seen}: shown"
        if self.missing is None:
            return f"{seen}: not shown, and more pictures like these would not show it"
        return f"{seen}: not shown, about {self.missing} more such pictures are missing"


BAN_PRECISION: Final = "ban precision"
BANS: Final = "bans"
SINCE: Final = ("accuracy since the anchor", "recall of risked since the anchor")


@dataclass(frozen=True)
class Decision:
    """The checks, in order; what was compared, and what about it a person should know."""

    checks: tuple[Check, ...]
    margin: float
    pictures: int
    notes: tuple[str, ...] = ()
    refused: bool = False
    """Whether nothing could be compared at all."""

    @property
    def passed(self) -> bool:
        """Whether all was shown."""
        return not self.refused and all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """For the history and the report."""
        return {
            "passed": self.passed,
            "margin": self.margin,
            "pictures": self.pictures,
            "checks": [asdict(check) for check in self.checks],
            "notes": list(self.notes),
        }

    def sentences(self) -> list[str]:
        """The figures line by line."""
        return [*(check.sentence() for check in self.checks), *self.notes]


def check_margin(margin: float) -> None:
    """Raise UsageError unless 0 < margin < 1."""
    if not 0 < margin < 1:
        raise UsageError(f"The margin {margin:g} is no difference of shares: give one above 0 and below 1.")


def judge(
    challenger: Judged,
    champion: Judged,
    *,
    margin: float = MARGIN,
    ban_precision: float = BAN_PRECISION_WANTED,
    at: Prevalence | None = None,
) -> Decision:
    """Compare two versions on the pictures that both were tested on under the same true label.

    `ban_precision` is what the challenger's bans must be shown to come up to, less the margin: at the prevalence `at`,
    or with the shares of the test pictures where it was fitted for none. Raises UsageError for a margin that is none.
    """
    check_margin(margin)
    common = [key for key in challenger if key in champion and champion[key][0] == challenger[key][0]]
    gained, lost = _differences(challenger, champion, common)
    risked = [key for key in common if challenger[key][0] == RISKED]
    risked_gained, risked_lost = _differences(challenger, champion, risked)
    checks = [
        _not_worse("accuracy", gained, lost, len(common), margin),
        _not_worse("recall of risked", risked_gained, risked_lost, len(risked), margin),
    ]
    # Of all the challenger's own test pictures: nothing is paired here.
    labels = np.array([label for label, _ in challenger.values()], np.int64)
    bans = Rates.count(np.array([verdict.banned for _, verdict in challenger.values()], np.bool_), labels)
    notes = []
    if bans.hits.any():
        checks.append(_ban_precision(bans, ban_precision - margin, at))
    elif banned := sum(champion[key][1].banned for key in risked):
        checks.append(Check(BANS, len(risked), 0, banned, 0.0, 0.0, 0.0, passed=False, missing=None))
    else:
        notes.append("The challenger bans none of the test pictures, so there is no precision of bans to hold.")
    if other := len(challenger) - len(common):
        notes.append(f"{other} test pictures of the challenger were not judged by the champion under the same label.")
    return Decision(tuple(checks), margin, len(common), tuple(notes))


def not_slid(challenger: Judged, anchor: Judged, margin: float) -> list[Check]:
    """Is it worse by more than the margin than the version that last came into service without the gate?

    Each of many versions may be a little worse than the one before; this stops them together. Here it is being worse
    that has to be shown, by the exact one-sided 95 % bound, for the anchor's test pictures do not become more.
    """
    common = [key for key in challenger if key in anchor and anchor[key][0] == challenger[key][0]]
    risked = [key for key in common if challenger[key][0] == RISKED]
    checks = []
    for name, keys in zip(SINCE, (common, risked), strict=True):
        gained, lost = _differences(challenger, anchor, keys)
        bound = -paired.lower_bound(lost, gained, len(keys))
        value = (gained - lost) / len(keys) if keys else 0.0
        passed = bound > -margin
        checks.append(Check(name, len(keys), gained, lost, value, bound, -margin, passed, 0 if passed else None))
    return checks


def aims(metrics: Mapping[str, Any]) -> tuple[float, Prevalence | None]:
    """What a manifest's metrics say the version was fitted for: the precision of bans, and the prevalence if given."""
    operated = metrics.get("operating", {})
    wanted = float(operated.get("aims", {}).get("ban_precision", BAN_PRECISION_WANTED))
    if operated.get("prevalence_from") != "given":
        return wanted, None
    return wanted, Prevalence(tuple(float(operated["prevalence"][name]) for name in LABELS), given=True)


def stricter(
    challenger: Mapping[str, Any], champion: Mapping[str, Any]
) -> tuple[float, Prevalence | None, tuple[str, ...]]:
    """Of two versions' metrics, the precision of bans to be shown and the prevalence to show it at.

    Also what a person should know of it, where it is not what the challenger was fitted for: one that was fitted for
    less must not pass for having asked less of itself.
    """
    (wanted, at), (_, before) = aims(challenger), aims(champion)
    notes = []
    if at is None and before is not None:
        at = before
        notes.append(
            f"Its bans are judged where {at.risked:.4g} of uploads are risked, as the champion was fitted for; the "
            "challenger was fitted for no prevalence."
        )
    standing = champion.get("operating", {}).get("aims", {}).get("ban_precision", wanted)
    if standing > wanted:
        notes.append(f"The precision of bans is held to the champion's {standing:g}; the challenger's is {wanted:g}.")
    return max(wanted, standing), at, tuple(notes)


def _differences(challenger: Judged, champion: Judged, keys: list[str]) -> tuple[int, int]:
    right = [(challenger[k][1].called == challenger[k][0], champion[k][1].called == champion[k][0]) for k in keys]
    return sum(new and not old for new, old in right), sum(old and not new for new, old in right)


def _not_worse(name: str, gained: int, lost: int, pictures: int, margin: float) -> Check:
    bound = paired.lower_bound(gained, lost, pictures)
    passed = bound > -margin
    enough = pictures if passed else paired.enough_pictures(gained, lost, pictures, margin)
    missing = None if enough is None else max(enough - pictures, 0 if passed else 1)
    value = (gained - lost) / pictures if pictures else 0.0
    return Check(name, pictures, gained, lost, value, bound, -margin, passed, missing)


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
    return Check(BAN_PRECISION, every, right, every - right, value, bound, needed, passed, 0 if passed else missing)


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
