"""Clusters of pictures in, one HTML page out: a contact sheet for each cluster, a 2-D map, and the random sample.

Nobody has labelled these pictures, so any of them may be what nobody wants to see: each sheet is blurred until it is
asked for, and no picture is larger than a thumbnail. The page is as self-contained as a report (`pages`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainer import charts, gallery, pages
from trainer.arrays import FloatArray, IntArray
from trainer.cluster import NOISE
from trainer.dataset import Picture
from trainer.labelling import Clustered, Clustering, key
from worker.decode import DecoderPool
from worker.model.labels import LABELS

FILE: Final = "clusters.html"

CENTRE_MAX: Final = 20
EDGE_MAX: Final = 10
"""Pictures shown of a cluster: those nearest to its centre, and the most doubtful ones that its name would label."""


@dataclass(frozen=True)
class Sheet:
    """A cluster: its name, its number of pictures and of those to be checked, and rows of (data URI, path)."""

    name: str
    pictures: int
    doubtful: int
    centre: Sequence[tuple[str, str]]
    edge: Sequence[tuple[str, str]]


def write(
    clustering: Clustering,
    pictures: Sequence[Picture],
    sample: Sequence[Clustered],
    placed: tuple[IntArray, FloatArray],
    decoders: DecoderPool,
) -> bytes:
    """The page. `pictures` are the clustering's, in its order; `placed` is the 2-D map of some of them."""
    members = {name: [p for p in clustering.pictures if key(p.cluster) == name] for name in clustering.sizes}
    chosen = {name: _chosen(of, clustering.doubt_max) for name, of in members.items()}
    wanted = {one.sha256 for centre, edge in chosen.values() for one in (*centre, *edge)}
    wanted |= {one.sha256 for one in sample}
    drawn = gallery.thumbnails([picture for picture in pictures if picture.sha256 in wanted], decoders)

    def tiles(of: Sequence[Clustered]) -> list[tuple[str, str]]:
        return [(drawn[one.sha256], one.path) for one in of if one.sha256 in drawn]

    sheets = [
        Sheet(
            name,
            len(members[name]),
            sum(one.doubt > clustering.doubt_max for one in members[name]),
            tiles(centre),
            tiles(edge),
        )
        for name, (centre, edge) in chosen.items()
    ]
    which, points = placed
    clusters = [clustering.pictures[i].cluster for i in which]
    facts: dict[str, Any] = {
        "noise": sum(one.cluster == NOISE for one in clustering.pictures),
        "mapped": len(which),
    }
    chart = charts.scatter(points.tolist(), clusters, {at: key(at) for at in sorted(set(clusters) - {NOISE})})
    return pages.render(
        FILE, clustering=clustering, sheets=sheets, sample=tiles(sample), chart=chart, labels=LABELS, facts=facts
    )


def _chosen(members: Sequence[Clustered], doubt_max: float) -> tuple[list[Clustered], list[Clustered]]:
    ordered = sorted(members, key=lambda one: one.doubt)
    centre, rest = ordered[:CENTRE_MAX], ordered[CENTRE_MAX:]
    sure = [one for one in rest if one.doubt <= doubt_max]
    return centre, sure[-EDGE_MAX:]
