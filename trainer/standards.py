"""What a challenger is held to: what two versions were fitted for in, the stricter of both out.

One that was fitted for less must not pass for having asked less of itself, be it meant or a slip of the schedule's
options; where the two differ, a person is told. Rules only: reads no file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trainer.operating import Prevalence
from worker.model.labels import LABELS
from worker.model.manifest import ManifestDraft

BAN_PRECISION: Final = 0.95
"""The precision of bans that is to hold where a version does not say which."""


@dataclass(frozen=True)
class Standard:
    """The precision that the challenger's bans must be shown to come up to, less the margin: at the prevalence `at`, or
    with the shares of the test pictures where that is None. `stricter_bans` says that more was asked of its bans than
    of the champion's, so that fewer of them are meant; `notes` are what a person should know."""

    ban_precision: float = BAN_PRECISION
    at: Prevalence | None = None
    stricter_bans: bool = False
    notes: tuple[str, ...] = ()


def stricter(challenger: ManifestDraft, champion: ManifestDraft) -> Standard:
    """The stricter of what two versions were fitted for, the challenger's where the champion says nothing.

    Where their shares of uploads differ, bans are judged where fewer are risked: each wrong one weighs more there.
    """
    wanted, at = _aim(challenger, "ban_precision", BAN_PRECISION), given_prevalence(challenger.metrics)
    standing, before = _aim(champion, "ban_precision", wanted), given_prevalence(champion.metrics)
    notes = []
    if at is None and before is not None:
        notes.append(
            f"Its bans are judged where {before.risked:.4g} of uploads are risked, as the champion was fitted for; the "
            "challenger was fitted for no prevalence."
        )
    elif at is not None and before is not None and at.risked != before.risked:
        notes.append(
            f"The challenger was fitted for {at.risked:.4g} of uploads being risked, the champion for "
            f"{before.risked:.4g}: its bans and reviews are judged at the smaller share."
        )
    rarest = min((one for one in (at, before) if one is not None), key=lambda one: one.risked, default=None)
    if standing > wanted:
        notes.append(f"The precision of bans is held to the champion's {standing:g}; the challenger's is {wanted:g}.")
    shown = _aim(challenger, "review_recall", 0.0)
    if (shown_before := _aim(champion, "review_recall", shown)) > shown > 0:
        notes.append(
            f"The champion's review threshold was to catch {shown_before:g} of risked uploads, the challenger's "
            f"{shown:g}: what of them is banned or seen is held to the champion's all the same."
        )
    rarer = at is not None and (before is None or at.risked < before.risked)
    by_hand = challenger.ban_threshold is not None and not challenger.ban_threshold_proven
    return Standard(max(wanted, standing), rarest, wanted > standing or rarer or by_hand, tuple(notes))


def given_prevalence(metrics: Mapping[str, Any]) -> Prevalence | None:
    """The shares of uploads that a manifest's metrics say were given; None where none were."""
    operated = metrics.get("operating", {})
    if operated.get("prevalence_from") != "given":
        return None
    return Prevalence(tuple(float(operated["prevalence"][name]) for name in LABELS), given=True)


def _aim(draft: ManifestDraft, name: str, default: float) -> float:
    return float(draft.metrics.get("operating", {}).get("aims", {}).get(name, default))
