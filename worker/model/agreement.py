"""Whether a faster engine may stand in for float32: rules over probabilities of the same pictures.

Probabilities of both go in, counts and a yes or a reason come out. Knows no engine, no torch and no pictures.
"""

from dataclasses import dataclass
from math import comb
from typing import Final

import numpy as np
import numpy.typing as npt

from worker.model.labels import RISKED
from worker.model.manifest import EngineCheck

DoubleArray = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

UNLABELLED: Final = -1
"""Stands where nobody has said what a picture is."""

CHANCE: Final = 0.05
"""A loss of right labels that would come about by chance less often than this is not put down to chance."""


@dataclass(frozen=True)
class Rule:
    """What a precision must show: at most `flips_share` of labels changed where float32 was clear by more than
    `margin`, judged on at least `pictures_min` pictures, a tenth of them clear."""

    margin: float
    pictures_min: int
    flips_share: float

    @property
    def clear_min(self) -> int:
        """Close calls may change, so they show nothing: so many others must have been seen."""
        return max(1, self.pictures_min // 10)


RULES: Final = {
    # float32 by another order of additions (compiled) is held to bfloat16's rule.
    "fp32": Rule(margin=0.1, pictures_min=100, flips_share=0.0),
    "bf16": Rule(margin=0.1, pictures_min=100, flips_share=0.0),
    "int8": Rule(margin=0.2, pictures_min=1000, flips_share=0.005),
}


@dataclass(frozen=True)
class Agreement:
    """What the comparison showed. `lost` counts labelled pictures that float32 alone had right, `won` those that the
    candidate alone had; `risked_lost` and `risked_won` are those among them that are risked."""

    rule: Rule
    pictures: int
    clear_pictures: int
    flips: int
    lost: int
    won: int
    risked_lost: int
    risked_won: int

    @property
    def refusal(self) -> str | None:
        """Why the candidate must not be used, None where it may: `flips`, `accuracy`, `recall`, `too_few_pictures`."""
        if self.flips > self.rule.flips_share * max(self.clear_pictures, self.rule.pictures_min):
            return "flips"  # even if all pictures still to come agreed, these are too many for the smallest sample
        if _beyond_chance(self.lost, self.won):
            return "accuracy"
        if _beyond_chance(self.risked_lost, self.risked_won):
            return "recall"
        if self.pictures < self.rule.pictures_min or self.clear_pictures < self.rule.clear_min:
            return "too_few_pictures"
        return "flips" if self.flips > self.rule.flips_share * self.clear_pictures else None

    def check(self) -> EngineCheck:
        """The same as a manifest records it."""
        return EngineCheck(
            pictures=self.pictures,
            clear_pictures=self.clear_pictures,
            flips=self.flips,
            passed=self.refusal is None,
        )


def compare(
    rule: Rule,
    reference: DoubleArray,
    candidate: DoubleArray,
    *,
    labels: Labels | None = None,
    ban_threshold: float | None = None,
) -> Agreement:
    """Compares probabilities [pictures, 3] of the same pictures; `labels` [pictures] may be UNLABELLED.

    A flip is another likeliest label where float32's best two are more than the margin apart, or another side of the
    ban threshold where float32's p(risked) is more than the margin away from it. What is lost and won goes by the label
    that is published, which is risked from the ban threshold on, whatever is likeliest.
    """
    best_two = np.sort(reference, axis=1)[:, -2:]
    clear = best_two[:, 1] - best_two[:, 0] > rule.margin
    chosen, other = reference.argmax(axis=1), candidate.argmax(axis=1)
    flipped = clear & (chosen != other)
    if ban_threshold is not None:
        p, q = reference[:, RISKED], candidate[:, RISKED]
        flipped |= (np.abs(p - ban_threshold) > rule.margin) & ((p >= ban_threshold) != (q >= ban_threshold))
        chosen, other = np.where(p >= ban_threshold, RISKED, chosen), np.where(q >= ban_threshold, RISKED, other)
    known = np.full(len(reference), UNLABELLED) if labels is None else labels
    lost = (known == chosen) & (known != other)
    won = (known == other) & (known != chosen)
    risked = known == RISKED
    return Agreement(
        rule=rule,
        pictures=len(reference),
        clear_pictures=int(clear.sum()),
        flips=int(flipped.sum()),
        lost=int(lost.sum()),
        won=int(won.sum()),
        risked_lost=int((lost & risked).sum()),
        risked_won=int((won & risked).sum()),
    )


def _beyond_chance(lost: int, won: int) -> bool:
    """One-sided exact sign test (McNemar 1947): would so many of the discordant pairs be losses by chance?"""
    pairs = lost + won
    tail = sum(comb(pairs, k) for k in range(lost, pairs + 1))
    return pairs > 0 and tail < CHANCE * 2**pairs
