"""Features of pictures that nobody has labelled in, groups of pictures that look alike out.

    features ─► standardised ─► principal components ─► k-means or HDBSCAN ─► Clusters
                                          └─► t-SNE ─► a 2-D map, for the eye only

A label comes from a person who looks at a cluster; this module knows no labels, files or pages.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize

from trainer.arrays import DoubleArray, FloatArray, IntArray
from trainer.tables import chunks

Method = Literal["kmeans", "hdbscan"]

NOISE: Final = -1
"""The cluster of a picture that HDBSCAN puts into none."""

COMPONENTS: Final = 50
CLUSTERS_MAX: Final = 100
SEED: Final = 0
"""The same pictures and settings give the same clusters."""

MAP_MAX: Final = 5_000
"""Pictures on the 2-D map at most: t-SNE of more takes minutes, and dots hide each other."""

PERPLEXITY: Final = 30.0
"""Van der Maaten and Hinton 2008: about so many neighbours keep their nearness; 5 to 50 differ little."""


@dataclass(frozen=True)
class Clusters:
    """Of each picture: `cluster` int64 [n] from 0 on, NOISE for none, the largest cluster first; `doubt` float64 [n],
    0 for a picture in the middle of its cluster, 1 for one that may as well be in another or none."""

    cluster: IntArray
    doubt: DoubleArray

    @property
    def count(self) -> int:
        """How many clusters there are, noise not counted."""
        return int(self.cluster.max(initial=NOISE)) + 1


def reduce(values: FloatArray, components: int = COMPONENTS) -> FloatArray:
    """The principal components of features [n, width], each feature standardised: float32 [n, at most components].

    Each row has length 1, so that pictures are compared by which features stand out, not by how much is in them.
    Walks through the table in chunks, so that one on disk needs not fit into memory.
    """
    mean, deviation = _moments(values)
    kept = deviation > 0
    most = min(components, len(values) - 1, int(kept.sum()))
    if most < 1:
        return np.zeros((len(values), 1), np.float32)
    parts = chunks(len(values))
    if len(parts) > 1 and parts[-1].stop - parts[-1].start < most:
        parts[-2:] = [slice(parts[-2].start, parts[-1].stop)]  # the analysis takes no part of fewer rows

    def standardised(part: slice) -> FloatArray:
        result: FloatArray = (values[part][:, kept] - mean[kept]) / deviation[kept]
        return result

    if len(parts) == 1:
        return _unit(PCA(most, random_state=SEED).fit_transform(standardised(parts[0])))
    analysis = IncrementalPCA(most)
    for part in parts:
        analysis.partial_fit(standardised(part))
    return _unit(np.concatenate([analysis.transform(standardised(part)) for part in parts]))


def _unit(points: FloatArray) -> FloatArray:
    result: FloatArray = normalize(points).astype(np.float32)
    return result


def _moments(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    total, squares = (np.zeros(values.shape[1], np.float64) for _ in range(2))
    for part in chunks(len(values)):
        total += values[part].sum(axis=0, dtype=np.float64)
    mean = total / len(values)
    for part in chunks(len(values)):
        squares += ((values[part] - mean) ** 2).sum(axis=0)
    return mean.astype(np.float32), np.sqrt(squares / len(values)).astype(np.float32)


def default_count(pictures: int) -> int:
    """k-means' clusters where nobody says how many: small enough to be of one kind, few enough to be named soon."""
    return max(2, min(CLUSTERS_MAX, round(math.sqrt(pictures))))


def by_kmeans(points: FloatArray, count: int) -> Clusters:
    """`count` clusters of points [n, k]. Doubt is the distance to the own centre over that to the next nearest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than clusters: fewer clusters
        made = KMeans(count, n_init=10, random_state=SEED).fit(points)
    nearest = np.partition(made.transform(points).astype(np.float64), 1, axis=1) if count > 1 else None
    doubt = np.zeros(len(points)) if nearest is None else nearest[:, 0] / np.maximum(nearest[:, 1], 1e-12)
    return _largest_first(made.labels_.astype(np.int64), doubt)


def by_hdbscan(points: FloatArray, smallest: int) -> Clusters:
    """Clusters of at least `smallest` points [n, k]. Doubt is 1 less the strength of membership."""
    made = HDBSCAN(min_cluster_size=smallest, copy=True).fit(points)
    return _largest_first(made.labels_.astype(np.int64), 1.0 - made.probabilities_.astype(np.float64))


def _largest_first(labels: IntArray, doubt: DoubleArray) -> Clusters:
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    rank = np.empty(len(sizes), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return Clusters(np.where(labels >= 0, rank[np.maximum(labels, 0)], NOISE), doubt)


def on_a_map(points: FloatArray) -> tuple[IntArray, FloatArray]:
    """t-SNE of points [n, k]: which of them, at most MAP_MAX drawn at random, and float32 [those, 2]."""
    drawn = np.arange(len(points))
    if len(points) > MAP_MAX:
        drawn = np.sort(np.random.default_rng(SEED).choice(drawn, MAP_MAX, replace=False))
    perplexity = min(PERPLEXITY, (len(drawn) - 1) / 3)
    placed = TSNE(2, perplexity=perplexity, random_state=SEED).fit_transform(points[drawn])
    return drawn.astype(np.int64), placed.astype(np.float32)
