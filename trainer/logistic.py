"""Multinomial logistic regression on standardised features: the optimum, in bounded memory.

    inputs [N, width], labels [N], C values ─► one LogisticFit for each C ─► weight and bias of one Linear layer

L-BFGS walks through the float32 table a chunk at a time, sums in float64, and holds nothing of the table's size, so the
table may be larger than memory. Knows nothing of pictures, and does not choose C.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from trainer.arrays import DoubleArray, FloatArray, IntArray
from trainer.tables import Tables, chunks
from worker.model.labels import LABELS

STEPS_MAX: Final = 10_000
TOLERANCE: Final = 1e-5
"""Largest entry of the mean loss's gradient at the end; products are float32, whose rounding hides smaller ones."""

TRIAL_TOLERANCE: Final = 1e-4
"""The same where values of C are only compared: two thirds of the time, and log losses move by less than 0.0005."""

SPAN_PAYS: Final = 4
"""With so many times fewer pictures than features, finding their span costs less than it saves."""

RANK_TOLERANCE: Final = 1e-12
"""Directions in which the pictures' squared spread is below this part of the widest are rounding noise."""

DEVIATION_MIN: Final = 1e-6
"""A feature whose deviation is below this part of its mean is rounding noise of float32 and gets no weight."""


@dataclass(frozen=True)
class Standardised:
    """Mean and deviation of each feature, float64 [width]; a deviation of infinity drops the feature."""

    mean: DoubleArray
    deviation: DoubleArray

    @classmethod
    def of(cls, inputs: FloatArray, rows: IntArray) -> "Standardised":
        """Of the `rows` of `inputs` [N, width], a chunk at a time."""
        parts = chunks(len(rows))
        mean = sum((inputs[rows[part]].sum(axis=0, dtype=np.float64) for part in parts), np.zeros(inputs.shape[1]))
        mean = mean / len(rows)
        spread = sum((((inputs[rows[part]] - mean) ** 2).sum(axis=0) for part in parts), np.zeros(inputs.shape[1]))
        deviation = np.sqrt(spread / len(rows))
        usable = deviation > DEVIATION_MIN * np.abs(mean) + np.finfo(np.float32).tiny
        return cls(mean, np.where(usable, deviation, np.inf))

    def __call__(self, inputs: FloatArray) -> DoubleArray:
        result: DoubleArray = (inputs - self.mean) / self.deviation
        return result


@dataclass(frozen=True)
class LogisticFit:
    """A multinomial logistic regression on standardised inputs: coefficients float64 [3, width], intercepts [3]."""

    scale: Standardised
    coefficients: DoubleArray
    intercepts: DoubleArray
    steps: int

    @property
    def converged(self) -> bool:
        """Whether the solver came to its end by itself."""
        return self.steps < STEPS_MAX

    def logits(self, inputs: FloatArray, rows: IntArray) -> FloatArray:
        """float32 [rows, 3] for the `rows` of `inputs` [N, width], a chunk at a time."""
        result = np.empty((len(rows), len(LABELS)), np.float32)
        for part in chunks(len(rows)):
            result[part] = self.scale(inputs[rows[part]]) @ self.coefficients.T + self.intercepts
        return result

    def folded(self) -> tuple[FloatArray, FloatArray]:
        """(weight, bias) of the one Linear on raw inputs with the same logits: W / s and b - (W / s) m."""
        weight = self.coefficients / self.scale.deviation
        bias = self.intercepts - weight @ self.scale.mean
        return weight.astype(np.float32), bias.astype(np.float32)


def fit_logistic(
    inputs: FloatArray,
    rows: IntArray,
    labels: IntArray,
    c_values: Sequence[float],
    tables: Tables,
    tolerance: float = TOLERANCE,
) -> list[LogisticFit]:
    """One fit on the `rows` of `inputs` [N, width] and `labels` [N] for each C, each starting from the one before.

    C is scikit-learn's inverse strength of the L2 penalty; labels are weighted so that each counts the same.
    `tables` takes the standardised inputs.
    """
    scale = Standardised.of(inputs, rows)
    points = tables.new(len(rows), inputs.shape[1])
    for part in chunks(len(rows)):
        points[part] = scale(inputs[rows[part]])
    # One thread: two are no quicker at products this narrow, and beside other work they wait for each other.
    with threadpool_limits(1):
        if SPAN_PAYS * len(rows) > inputs.shape[1]:
            return _path(scale, points, labels[rows], c_values, tolerance)
        coordinates, back = _in_their_span(points)
        found = _path(scale, coordinates, labels[rows], c_values, tolerance)
        return [replace(fit, coefficients=fit.coefficients @ back) for fit in found]


def _in_their_span(points: FloatArray) -> tuple[FloatArray, DoubleArray]:
    """(coordinates [N, rank], back [rank, width]): `points` [N, width] in an orthonormal basis of their span.

    With fewer pictures than features the optimum of a regularised fit lies in that span (the representer theorem),
    so it is looked for there. The basis comes from the eigenvectors of the N x N products, which is many times
    quicker than a singular value decomposition of the table.
    """
    wide = points.astype(np.float64)
    squares, vectors = np.linalg.eigh(wide @ wide.T)
    kept = squares > RANK_TOLERANCE * squares[-1]
    lengths = np.sqrt(squares[kept])
    return (vectors[:, kept] * lengths).astype(np.float32), (vectors[:, kept] / lengths).T @ wide


def balanced(labels: IntArray) -> DoubleArray:
    """What each picture counts, [pictures], for each label to count the same; 1 on average."""
    counts = np.bincount(labels, minlength=len(LABELS))
    weights: DoubleArray = (len(labels) / (len(LABELS) * np.maximum(counts, 1)))[labels]
    return weights


def _path(
    scale: Standardised, points: FloatArray, labels: IntArray, c_values: Sequence[float], tolerance: float
) -> list[LogisticFit]:
    """Fits by L-BFGS on standardised `points` float32 [N, width], which are read a chunk at a time."""
    width, size = points.shape[1], len(LABELS)
    weights = balanced(labels)
    found, fits = np.zeros(size * (width + 1)), []
    for c in c_values:
        penalty = 1 / (c * len(labels))

        def loss(parameters: DoubleArray, penalty: float = penalty) -> tuple[float, DoubleArray]:
            matrix = parameters.reshape(size, width + 1)
            total, gradient = _mean_loss(points, labels, weights, matrix)
            total += penalty / 2 * float((matrix[:, :-1] ** 2).sum())
            gradient[:, :-1] += penalty * matrix[:, :-1]
            return total, gradient.ravel()

        options = {"maxiter": STEPS_MAX, "gtol": tolerance, "ftol": 1e-10}
        result = minimize(loss, found, jac=True, method="L-BFGS-B", options=options)
        found = result.x
        matrix = found.reshape(size, width + 1)
        fits.append(LogisticFit(scale, matrix[:, :-1].copy(), matrix[:, -1].copy(), int(result.nit)))
    return fits


def _mean_loss(
    points: FloatArray, labels: IntArray, weights: DoubleArray, matrix: DoubleArray
) -> tuple[float, DoubleArray]:
    """Weighted cross-entropy a picture and its gradient [3, width + 1] at `matrix`; the last column are intercepts."""
    coefficients, total, gradient = matrix[:, :-1].T.astype(np.float32), 0.0, np.zeros_like(matrix)
    for part in chunks(len(points)):
        chunk, truth, weight = points[part], labels[part], weights[part]
        logs = log_softmax((chunk @ coefficients).astype(np.float64) + matrix[:, -1], axis=1)
        at = np.arange(len(truth))
        total -= float((weight * logs[at, truth]).sum())
        slopes = np.exp(logs)
        slopes[at, truth] -= 1
        slopes *= weight[:, None]
        # The long side first: the same product the other way round takes four times as long.
        gradient[:, :-1] += (chunk.T @ slopes.astype(np.float32)).T
        gradient[:, -1] += slopes.sum(axis=0)
    return total / len(labels), gradient / len(labels)
