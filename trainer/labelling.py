"""What a person and the trainer tell each other about clusters: the files of a cluster folder, and labelled folders.

    clusters.json   every picture: path, digest, cluster, doubt               (the trainer's)
    names.toml      every cluster, with a label to fill in                    (a person's)
    sample.csv      a random sample of the pictures, with labels to fill in   (a person's; purity comes from it)
    check.csv       pictures that no cluster's name may label, likewise       (written by --apply)

    clusters.json + what a person filled in ─► decide (pure) ─► place: <out>/<label>/<content_id>.<ext>

A person's label for a picture always goes before the name of its cluster. What is not sure is listed, never put into a
folder in silence. Knows no features and no networks.
"""

import csv
import io
import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from trainer import intervals
from trainer.cluster import NOISE
from trainer.errors import DataError
from worker.model.labels import LABELS

CLUSTERS: Final = "clusters.json"
NAMES: Final = "names.toml"
SAMPLE: Final = "sample.csv"
CHECK: Final = "check.csv"
SCHEMA: Final = 1

Reason = Literal["noise", "unnamed_cluster", "far_from_centre", "gone", "changed", "name_taken"]
"""Why a picture must be checked by hand."""


@dataclass(frozen=True)
class Clustered:
    """A picture in its cluster: `path` relative to the folder that was clustered, the SHA-256 of its bytes, the
    cluster or NOISE, and how doubtful that is, from 0 to 1."""

    path: str
    sha256: str
    cluster: int
    doubt: float


@dataclass(frozen=True)
class Clustering:
    """A cluster folder's own record: the folder that was clustered, its pictures, and how it was done."""

    root: Path
    pictures: tuple[Clustered, ...]
    doubt_max: float
    made: Mapping[str, Any]

    @property
    def sizes(self) -> dict[str, int]:
        """Pictures in each cluster, by its name in names.toml, in order."""
        counted = Counter(picture.cluster for picture in self.pictures if picture.cluster != NOISE)
        return {key(cluster): counted[cluster] for cluster in sorted(counted)}

    def to_json(self) -> bytes:
        """The bytes of clusters.json."""
        rows = [[p.path, p.sha256, p.cluster, round(p.doubt, 6)] for p in self.pictures]
        document = {
            "schema": SCHEMA,
            "root": str(self.root),
            "doubt_max": self.doubt_max,
            "made": self.made,
            "pictures": rows,
        }
        return json.dumps(document).encode()


def key(cluster: int) -> str:
    """A cluster's name in files and on pages."""
    return f"c{cluster:02d}"


def names_file(sizes: Mapping[str, int]) -> bytes:
    """names.toml with every cluster and no label yet."""
    lines = [
        f"# Give every cluster that clusters.html shows its label: {', '.join(LABELS)}.",
        '# Leave "" where a cluster is mixed or you are not sure: its pictures are then listed in check.csv.',
        "",
        "[names]",
        *(f'{name} = ""  # {count} pictures' for name, count in sizes.items()),
    ]
    return ("\n".join(lines) + "\n").encode()


def sample_file(pictures: Sequence[Clustered]) -> bytes:
    """sample.csv of the drawn pictures. It names no cluster, so that none suggests a label."""
    return _csv(("path", "label"), [(picture.path, "") for picture in pictures])


@dataclass(frozen=True)
class Filled:
    """What a person filled in: label by cluster, label by picture's path, and of the sample's pictures the label by
    path, "" where it is not filled in."""

    names: Mapping[str, str]
    by_hand: Mapping[str, str]
    sample: Mapping[str, str]


def read(names: Path) -> tuple[Clustering, Filled]:
    """A cluster folder by its names file.

    Raises DataError for a file that is missing or is not what it should be, naming what to mend.
    """
    clustering = _clustering(names.parent / CLUSTERS)
    paths = {picture.path for picture in clustering.pictures}
    labels = _names(names, clustering)
    sample = _hand_labels(names.parent / SAMPLE, paths)
    check = names.parent / CHECK
    by_hand = {**(_hand_labels(check, paths) if check.exists() else {}), **_filled(sample)}
    return clustering, Filled(_filled(labels), _filled(by_hand), sample)


def _filled(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: label for name, label in labels.items() if label}


def _text(path: Path) -> str:
    try:
        # -sig: spreadsheets and some editors put a mark before the first letter.
        return path.read_text("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror}): name one that cluster wrote.") from error


def _clustering(path: Path) -> Clustering:
    text = _text(path)
    try:
        document = json.loads(text)
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']}")
        pictures = tuple(
            Clustered(str(p), str(digest), int(cluster), float(doubt))
            for p, digest, cluster, doubt in document["pictures"]
        )
        return Clustering(Path(document["root"]), pictures, float(document["doubt_max"]), dict(document["made"]))
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not what cluster wrote ({error}): run cluster again.") from error


def _names(path: Path, clustering: Clustering) -> dict[str, str]:
    try:
        names = tomllib.loads(_text(path)).get("names")
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is no TOML ({error}): mend that line.") from error
    known = clustering.sizes
    if not isinstance(names, dict) or names.keys() != known.keys():
        odd = sorted(known.keys() ^ (names.keys() if isinstance(names, dict) else set()))
        raise DataError(
            f"{str(path)!r} must have a table [names] with every cluster of {CLUSTERS} and no other: "
            f"look at {odd[0] if odd else 'its form'!r}."
        )
    for name, label in names.items():
        _check_label(label, f"{name} in {str(path)!r}")
    return names


def _hand_labels(path: Path, known: set[str]) -> dict[str, str]:
    """Label by path, "" for a row that is not filled in."""
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    found = {}
    try:
        if missing := {"path", "label"} - {*(rows.fieldnames or ())}:
            raise DataError(f"{str(path)!r} has no column {min(missing)!r}: mend its first line.")
        for row in rows:
            name, label = row.get("path"), (row.get("label") or "").strip()
            if name not in known or name is None:
                raise DataError(f"Line {rows.line_num} of {str(path)!r} names no picture of {CLUSTERS}: mend its path.")
            _check_label(label, f"line {rows.line_num} of {str(path)!r}")
            found[name] = label
    except csv.Error as error:
        raise DataError(f"{str(path)!r} is no CSV ({error}): mend line {rows.line_num}.") from error
    return found


def _check_label(label: object, where: str) -> None:
    if label != "" and label not in LABELS:
        raise DataError(f"The label {label!r} of {where} is none: write {', '.join(LABELS)}, or leave it empty.")


@dataclass(frozen=True)
class Decision:
    """What becomes of a picture: its label, or the reason why a person must look; `suggested` is its cluster's name,
    `by_hand` the label that a person gave it, or nothing."""

    picture: Clustered
    label: str | None
    reason: Reason | None
    suggested: str
    by_hand: str


def decide(clustering: Clustering, filled: Filled) -> list[Decision]:
    """The label of every picture, or why it has none. Rules only."""
    made = []
    for picture in clustering.pictures:
        suggested = filled.names.get(key(picture.cluster), "")
        label, reason = _by_cluster(picture, suggested, clustering.doubt_max)
        hand = filled.by_hand.get(picture.path, "")
        if hand:
            label, reason = hand, None
        made.append(Decision(picture, label, reason, suggested, hand))
    return made


def _by_cluster(picture: Clustered, name: str, doubt_max: float) -> tuple[str | None, Reason | None]:
    if picture.cluster == NOISE:
        return None, "noise"
    if not name:
        return None, "unnamed_cluster"
    if picture.doubt > doubt_max:
        return None, "far_from_centre"
    return name, None


def purity(decisions: Sequence[Decision], doubt_max: float, sample: Mapping[str, str]) -> dict[str, Any] | None:
    """How many of the sampled pictures that their cluster's name would place lie under the label a person gave them.

    The sample was drawn at random from all pictures, so those of it that are placed are a random sample of what is
    placed: the exact 95 % interval is of the share of all of them. Also by label. None where none is labelled.
    """
    placed = {d.picture.path: _by_cluster(d.picture, d.suggested, doubt_max)[0] for d in decisions}
    pairs = [(placed[path], truth) for path, truth in _filled(sample).items() if placed[path] is not None]
    if not pairs:
        return None
    made = {label: _share([name == truth for name, truth in pairs if name == label]) for label in LABELS}
    return _share([name == truth for name, truth in pairs]) | {"labels": made}


def _share(right: Sequence[bool]) -> dict[str, Any]:
    hits, of = sum(right), len(right)
    value = hits / of if of else None
    return {"right": hits, "of": of, "value": value, "interval": list(intervals.share(hits, of)) if of else None}


def check_file(decisions: Sequence[Decision]) -> bytes:
    """check.csv: what must be labelled by hand, and what was, so that the file may be filled in bit by bit."""
    rows = []
    for d in decisions:
        if d.by_hand or d.reason:
            cluster = "" if d.picture.cluster == NOISE else key(d.picture.cluster)
            rows.append((d.picture.path, cluster, d.suggested, d.reason or "labelled", d.by_hand))
    return _csv(("path", "cluster", "suggested", "reason", "label"), rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
