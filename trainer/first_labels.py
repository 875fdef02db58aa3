"""First labels from nothing: pictures that nobody has labelled in, labelled folders out, a person in between.

    gather   folder ─► features ─► clusters ─► a folder with clusters.html and files to fill in
    apply    that folder, filled in ─► labelled folders, what is left to check, purity on the random sample

Both write their folder in one step: it is there whole or not at all, and nothing that is there is ever replaced but
check.csv, whose labels are kept. Clusters are made in `cluster`, what the files mean is `labelling`'s, the page is
`contact`'s.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainer import cluster, contact, dataset, labelling
from trainer.arrays import FloatArray
from trainer.cluster import Clusters, Method
from trainer.dataset import Picture
from trainer.errors import DataError
from trainer.features import Compute, Features
from trainer.labelling import CHECK, CLUSTERS, NAMES, SAMPLE, Clustered, Clustering, Decision, Filled, Reason
from trainer.progress import Reporter
from worker.decode import DecoderPool
from worker.errors import UsageError
from worker.model import files
from worker.model.labels import LABELS

PICTURES_MIN: Final = 10
"""Fewer pictures are labelled faster by hand."""

SAMPLE_SEED: Final = 1


@dataclass(frozen=True)
class Plan:
    """What is asked for. `count` is k-means' number of clusters, None for the default; `smallest` is HDBSCAN's
    smallest cluster; pictures with more doubt than `doubt_max` are to be checked by hand."""

    pictures: Path
    out: Path
    method: Method
    count: int | None
    smallest: int
    doubt_max: float
    sample: int


def check_plan(plan: Plan) -> None:
    """What can be found out before the work. Raises UsageError where the folder to write is there already."""
    _check_free(plan.out)


def gather(
    plan: Plan, compute: Compute, decoders: DecoderPool, made: dict[str, Any], reporter: Reporter
) -> dict[str, Any]:
    """Cluster the pictures of a checked plan and write the folder; returns what is to be told.

    `made` is its provenance.

    Raises DataError where there are too few pictures, UsageError where the folder is there already.
    """
    features = compute(_once(plan.pictures, reporter), "middle", "Features")
    if features.unreadable:
        names = dataset.listing([str(file.path) for file in features.unreadable])
        reporter.say(f"{len(features.unreadable)} files are no usable pictures, left out: {names}.")
    count = len(features.pictures)
    if count < PICTURES_MIN:
        raise DataError(f"There are {count} usable pictures in {str(plan.pictures)!r}: supply {PICTURES_MIN} or more.")
    points = cluster.reduce(features.values)
    found = _clusters(plan, points)
    clustering = _clustering(plan, features, found, made)
    if not clustering.sizes:
        raise DataError("HDBSCAN finds no cluster in these pictures: use --method kmeans, or a smaller --smallest.")
    drawn = np.random.default_rng(SAMPLE_SEED).choice(count, min(plan.sample, count), replace=False)
    sample = [clustering.pictures[i] for i in drawn]
    page = contact.write(clustering, features.pictures, sample, cluster.on_a_map(points), decoders)
    written = {
        contact.FILE: page,
        CLUSTERS: clustering.to_json(),
        NAMES: labelling.names_file(clustering.sizes),
        SAMPLE: labelling.sample_file(sample),
    }
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    if not files.add_folder(plan.out, written):
        raise _taken(plan.out)
    noise = int((found.cluster == cluster.NOISE).sum())
    doubtful = int(((found.doubt > plan.doubt_max) & (found.cluster != cluster.NOISE)).sum())
    return {
        "page": str(plan.out / contact.FILE),
        "names": str(plan.out / NAMES),
        "sample": str(plan.out / SAMPLE),
        "pictures": count,
        "clusters": found.count,
        "noise": noise,
        "far_from_centre": doubtful,
    }


def _once(folder: Path, reporter: Reporter) -> list[Picture]:
    """Each content once: a copy would be labelled and counted twice."""
    by_digest: dict[str, Picture] = {}
    pictures = dataset.scan_unlabelled(folder, "pictures")
    for picture in pictures:
        by_digest.setdefault(picture.sha256, picture)
    if more := len(pictures) - len(by_digest):
        reporter.say(f"{more} files repeat the content of others and are used once.")
    return list(by_digest.values())


def _clusters(plan: Plan, points: FloatArray) -> Clusters:
    if plan.method == "hdbscan":
        return cluster.by_hdbscan(points, min(plan.smallest, len(points)))
    return cluster.by_kmeans(points, min(plan.count or cluster.default_count(len(points)), len(points)))


def _clustering(plan: Plan, features: Features, found: Clusters, made: dict[str, Any]) -> Clustering:
    root = plan.pictures.absolute()
    rows = zip(features.pictures, found.cluster.tolist(), found.doubt.tolist(), strict=True)
    pictures = [Clustered(str(p.path.relative_to(plan.pictures)), p.sha256, at, doubt) for p, at, doubt in rows]
    return Clustering(root, tuple(pictures), plan.doubt_max, made)


def apply(names: Path, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Write the labelled folders by a filled-in names file; returns what is to be told.

    Raises DataError where a file is not what it should be, UsageError where `out` is there already.
    """
    clustering, filled = labelling.read(names)
    _check_free(out)
    decided = labelling.decide(clustering, filled)
    if not any(one.label for one in decided):
        raise DataError(f"No cluster has a label yet: open {contact.FILE} and fill in {str(names)!r}.")
    check = names.parent / CHECK
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.temporary_in(out.parent) as temporary:
        placed = _place(clustering.root, decided, temporary)
        if not any(one.label for one in placed) and any(one.reason == "gone" for one in placed):
            raise DataError(f"No picture is in {str(clustering.root)!r} any more: bring the folder back.")
        files.replace(check, labelling.check_file(placed))  # first: folders without their list would look complete
        try:
            temporary.rename(out)
        except OSError:
            if os.path.lexists(out):
                raise _taken(out) from None
            raise
    right = labelling.purity(decided, clustering.doubt_max, filled.sample)
    reporter.say(_on_purity(right, filled, names.parent / SAMPLE))
    return {
        "labels": _counted([one.label for one in placed]),
        "labelled_by_hand": sum(bool(one.by_hand) for one in placed if one.label),
        "to_check": _counted([one.reason for one in placed]),
        "check": str(check),
        "purity": right,
    }


def _counted(names: Sequence[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(name for name in names if name).items()))


def _on_purity(right: Mapping[str, Any] | None, filled: Filled, sample: Path) -> str:
    labelled = sum(1 for label in filled.sample.values() if label)
    if right is None:
        return f"Purity is not known: label the pictures of {str(sample)!r} and apply again."
    low, high = right["interval"]
    said = (
        f"Of {right['of']} sampled pictures that a cluster's name labels, {right['right']} have the label that "
        f"a person gave them: {right['value']:.3f}, 95 % interval {low:.3f} to {high:.3f}."
    )
    if missing := len(filled.sample) - labelled:
        said += f" {missing} of the {len(filled.sample)} are not labelled: left out by choice, they bend it."
    return said


def _place(root: Path, decisions: Sequence[Decision], into: Path) -> list[Decision]:
    """Copy each picture that has a label to `into`/<label>/<its name>; what cannot be copied must be checked instead.

    A content ID stands for one picture, so the second of that name is not placed, under whatever label.
    """
    for label in LABELS:
        (into / label).mkdir(parents=True)
    seen: set[str] = set()
    made = []
    for one in decisions:
        reason = None if one.label is None else _copy(root / one.picture.path, one, into, seen)
        made.append(one if reason is None else replace(one, label=None, reason=reason))
    return made


def _copy(source: Path, one: Decision, into: Path, seen: set[str]) -> Reason | None:
    if source.stem in seen:
        return "name_taken"
    try:
        content = source.read_bytes()
    except OSError:
        return "gone"
    if hashlib.sha256(content).hexdigest() != one.picture.sha256:
        return "changed"
    (into / str(one.label) / source.name).write_bytes(content)
    seen.add(source.stem)
    return None


def _check_free(folder: Path) -> None:
    """Found out before the work, not after it."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise _taken(folder)
    standing = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
        raise UsageError(f"Nothing can be written into {str(standing)!r}: name another folder with --out.")


def _taken(folder: Path) -> UsageError:
    return UsageError(f"{str(folder)!r} is there already, and nobody's work is replaced: name another with --out.")
