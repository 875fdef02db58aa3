"""What the gate found: checks with their figures, and the decision that they add up to. For people and the record.

Computes nothing: bounds are `paired`'s and `intervals`', what is compared is `gate`'s. Knows no store and no file.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

BAN_PRECISION: Final = "ban precision"
BANS: Final = "bans"
BANS_OF_RISKED: Final = "bans of risked"
FOUND: Final = "risked banned or seen"
HELD: Final = "held for people"
SINCE: Final = tuple(f"{what} since the anchor" for what in ("accuracy", "recall of risked", FOUND))
TEST_KEPT: Final = "test pictures of the champion"
TRAINING_KEPT: Final = "training pictures of "
"""Followed by the label."""


@dataclass(frozen=True)
class Check:
    """One thing to be shown: `bound` must lie above `needed`. `missing` more pictures would probably show it, None
    where no number of them would; 0 where it passed. Of the precision of bans, `pictures` are the bans, `gained` those
    that are right, `lost` those that are not; of what must be kept, `pictures` are the champion's, `gained` those that
    the challenger has. Of what is held for people, `value`, `bound` and `needed` are the negative of the challenger's
    share, of its lower bound, and of what would be too much."""

    name: str
    pictures: int
    gained: int
    lost: int
    value: float
    bound: float
    needed: float
    passed: bool
    missing: int | None

    @property
    def is_kept(self) -> bool:
        """Whether it is about what the versions were made of and tested on, not about what they do."""
        return self.name == TEST_KEPT or self.name.startswith(TRAINING_KEPT)

    def sentence(self) -> str:
        """The figures, for a person."""
        return _kept(self) if self.is_kept else _TOLD.get(self.name, _to_be_shown)(self)


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
        return not self.refused and not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

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

    def refusal(self, version_id: str, champion: str) -> str:
        """One sentence for who wanted to promote: what was not shown, and what to do."""
        names = " and ".join(check.name for check in self.failed)
        if any(check.is_kept for check in self.failed):
            return (
                f"The version {version_id} is not promoted, for much of what {champion} was fitted or tested on is "
                f"not in its data set ({names}): mount that data set and fit again, or promote with --force --why TEXT "
                "where it was replaced on purpose."
            )
        if self.failed and all(check.name in SINCE for check in self.failed):
            return (
                f"The version {version_id} is not promoted, for many small steps have added up ({names}): fit a "
                "better one, or promote with --force --why TEXT."
            )
        hopeless = any(check.missing is None for check in self.failed)
        more = "; ".join(f"about {check.missing} more for {check.name}" for check in self.failed if check.missing)
        what = "fit a better one" if hopeless else f"supply more test pictures ({more}) and fit again"
        return (
            f"The version {version_id} is not promoted, for it is not shown to be as good as {champion} within "
            f"{self.margin:g} ({names}): {what}, or promote with --force --why TEXT."
        )


def _kept(check: Check) -> str:
    seen = f"{check.name}: {check.gained} of {check.pictures} are in the challenger's data set"
    if check.name != TEST_KEPT:
        seen = f"{check.name}: {check.gained}, the champion had {check.pictures}"
    return f"{seen}, needed {check.needed:.0%}: {'kept' if check.passed else 'not kept'}"


def _no_bans(check: Check) -> str:
    return (
        f"{check.name}: the champion bans {check.lost} of these risked pictures, the challenger none, and all "
        "would wait for a person: not shown; --force where that is meant"
    )


def _not_shown_worse(check: Check) -> str:
    seen = f"{check.name}: {check.value:+.4f} on {check.pictures} pictures, at most {check.bound:+.4f} (95 %)"
    return f"{seen}: {'not shown to be' if check.passed else 'shown to be'} worse by more than {-check.needed:g}"


def _held(check: Check) -> str:
    seen = f"{check.name}: {-check.value:.2%} of uploads expected, at least {-check.bound:.2%} (95 %)"
    limit = f"above {-check.needed:.2%}, which is too much beside the champion"
    return f"{seen}: {'not shown to be' if check.passed else 'shown to be'} {limit}"


def _ban_precision(check: Check) -> str:
    seen = f"{check.name}: {check.value:.4f}, {check.gained} of {check.pictures} bans are right, "
    return _or_missing(check, f"{seen}95 % bound {check.bound:.4f}, needed above {check.needed:.4f}")


def _to_be_shown(check: Check) -> str:
    seen = f"{check.name}: {check.value:+.4f} on {check.pictures} pictures ({check.gained} gained, {check.lost} "
    return _or_missing(check, f"{seen}lost), 95 % bound {check.bound:+.4f}, needed above {check.needed:+.4f}")


def _or_missing(check: Check, seen: str) -> str:
    if check.passed:
        return f"{seen}: shown"
    if check.missing is None:
        return f"{seen}: not shown, and more pictures like these would not show it"
    return f"{seen}: not shown, about {check.missing} more such pictures are missing"


_TOLD: Final[Mapping[str, Callable[[Check], str]]] = {
    BANS: _no_bans,
    BAN_PRECISION: _ban_precision,
    BANS_OF_RISKED: _not_shown_worse,
    HELD: _held,
    **dict.fromkeys(SINCE, _not_shown_worse),
}
