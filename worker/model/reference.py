"""What a version's decisions were expected to look like: counts of held-out pictures in, shares of a stream out.

The reference that drift is measured against. A training set is balanced and a stream is not, so what was counted of
each true label is weighted by the prevalence that the version was calibrated for. Rules only: reads no file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from worker.model.labels import LABELS

PROBABILITY_EDGES: Final = tuple(n / 20 for n in range(1, 21))
"""Upper edges, each included, of the bins that p(risked) is counted in, by trainer and worker alike."""

_Counts = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


@dataclass(frozen=True)
class Reference:
    """Expected shares: of each label among verdicts, and of pictures whose p(risked) is at most an edge."""

    label_shares: dict[str, float]
    risked_at_most: dict[float, float]


class _HeldOut(BaseModel):
    confusion: list[_Counts]
    risked_probability: list[_Counts] = []


class _Operating(BaseModel):
    prevalence: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]]


class _Metrics(BaseModel):
    held_out: _HeldOut
    operating: _Operating


def expected(metrics: Mapping[str, Any]) -> Reference | None:
    """The reference in a manifest's `metrics`; None where it has none, as versions made by hand.

    The expected share of what was called j is the sum over true labels i of prevalence(i) times the share of i's
    held-out pictures that were called j (label shift: that share does not depend on the prevalence).
    """
    try:
        found = _Metrics.model_validate(metrics)
    except ValidationError:
        return None
    prevalence = np.array([found.operating.prevalence.get(name, 0.0) for name in LABELS])
    labels = _weighted(found.held_out.confusion, prevalence, len(LABELS))
    if labels is None:
        return None
    risked = _weighted(found.held_out.risked_probability, prevalence, len(PROBABILITY_EDGES))
    at_most = {} if risked is None else dict(zip(PROBABILITY_EDGES, np.cumsum(risked).tolist(), strict=True))
    return Reference(dict(zip(LABELS, labels.tolist(), strict=True)), at_most)


def histogram(risked: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> list[list[int]]:
    """How many pictures of each true label [3] have a p(risked) in each bin [20], for a manifest."""
    bins = np.searchsorted(PROBABILITY_EDGES, risked, side="left").clip(max=len(PROBABILITY_EDGES) - 1)
    counted = np.zeros((len(LABELS), len(PROBABILITY_EDGES)), np.int64)
    np.add.at(counted, (labels, bins), 1)
    return [[int(count) for count in row] for row in counted]


def _weighted(rows: list[list[int]], prevalence: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64] | None:
    """Shares [width] from counts [true label, width]; None where a label that occurs was never counted."""
    if len(rows) != len(LABELS) or any(len(row) != width for row in rows):
        return None
    counts = np.array(rows, np.float64)
    totals = counts.sum(axis=1)
    if prevalence.sum() <= 0 or (totals[prevalence > 0] == 0).any():
        return None
    shares: npt.NDArray[np.float64] = (prevalence / prevalence.sum()) @ (counts / np.maximum(totals, 1)[:, None])
    return shares
