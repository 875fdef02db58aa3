"""What a version made of each test picture, kept beside it, so that two versions can be compared picture by picture.

    test_outcomes.json: {"schema": 1, "rows": [[sha256, label, [p, p, p], called, banned], …], "parent": {…} | null}

Kept rather than computed again at promotion: what was promoted is then what was measured, promotion needs neither
pictures nor a forward pass, and a person can check the figures afterwards. `parent` has what the champion of that time
made of the same pictures, because its own test set may have been another: its last layer on the same features costs
nothing. About 110 bytes a picture, 150 with a parent. Knows nothing of networks, gates or the store.
"""

import json
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from trainer.arrays import BoolArray, DoubleArray, IntArray
from trainer.dataset import Picture
from trainer.evaluate import banned, decided
from worker.errors import WeightsError
from worker.model.labels import LABELS

FILE: Final = "test_outcomes.json"
FILE_MAX_BYTES: Final = 256 * 2**20
DECIMALS: Final = 5
"""Digits kept of a probability; what was decided stands beside it, so that rounding changes no outcome."""


class Verdict(NamedTuple):
    """What a version made of one picture: the label it called, and whether it banned."""

    called: int
    banned: bool


@dataclass(frozen=True)
class Outcomes:
    """Row by row: `sha256` of the bytes, `labels` int64 [n], `probabilities` float64 [n, 3], `called` int64 [n],
    `banned` bool [n]. `parent` is the champion of that time and its verdicts on the same rows, where known."""

    sha256: tuple[str, ...]
    labels: IntArray
    probabilities: DoubleArray
    called: IntArray
    banned: BoolArray
    parent: tuple[str, tuple[Verdict, ...]] | None = None

    @classmethod
    def of(
        cls,
        pictures: tuple[Picture, ...],
        probabilities: DoubleArray,
        ban_threshold: float | None,
        parent: tuple[str, DoubleArray, float | None] | None = None,
    ) -> "Outcomes":
        """From `pictures` and their probabilities [n, 3]; `parent` is (id, its probabilities, its ban threshold)."""
        verdicts = None
        if parent is not None:
            called, bans = decided(parent[1], parent[2]), banned(parent[1], parent[2])
            pairs = zip(called.tolist(), bans.tolist(), strict=True)
            verdicts = (parent[0], tuple(Verdict(label, ban) for label, ban in pairs))
        return cls(
            tuple(picture.sha256 for picture in pictures),
            np.array([picture.label for picture in pictures], np.int64),
            probabilities,
            decided(probabilities, ban_threshold),
            banned(probabilities, ban_threshold),
            verdicts,
        )

    def verdicts(self) -> dict[str, tuple[int, Verdict]]:
        """By SHA-256: the true label and this version's verdict."""
        rows = zip(self.sha256, self.labels.tolist(), self.called.tolist(), self.banned.tolist(), strict=True)
        return {sha256: (label, Verdict(called, ban)) for sha256, label, called, ban in rows}

    def of_parent(self) -> dict[str, tuple[int, Verdict]]:
        """As `verdicts`, of the parent; empty where it is not known."""
        if self.parent is None:
            return {}
        rows = zip(self.sha256, self.labels.tolist(), self.parent[1], strict=True)
        return {sha256: (label, verdict) for sha256, label, verdict in rows}

    def to_json(self) -> bytes:
        """The bytes of test_outcomes.json, a row a line."""
        rows = zip(self.verdicts().items(), self.probabilities.round(DECIMALS).tolist(), strict=True)
        lines = [
            json.dumps([sha256, label, p, verdict.called, int(verdict.banned)], separators=(",", ":"))
            for (sha256, (label, verdict)), p in rows
        ]
        parent = None
        if self.parent is not None:
            parent = {"id": self.parent[0], "verdicts": [[v.called, int(v.banned)] for v in self.parent[1]]}
        head = f'{{"schema":1,"labels":{json.dumps(LABELS)},"rows":[\n'
        tail = f'\n],"parent":{json.dumps(parent, separators=(",", ":"))}}}\n'
        return (head + ",\n".join(lines) + tail).encode()


def parse(content: bytes, version_id: str) -> Outcomes:
    """The outcomes in the file of a version. Raises WeightsError where they are damaged."""
    try:
        document: dict[str, Any] = json.loads(content)
        if document["schema"] != 1 or document["labels"] != list(LABELS):
            raise ValueError("another schema")
        rows = document["rows"]
        labels = np.array([_label(row[1]) for row in rows], np.int64)
        probabilities = np.array([row[2] for row in rows], np.float64).reshape(len(rows), len(LABELS))
        called = np.array([_label(row[3]) for row in rows], np.int64)
        bans = np.array([bool(row[4]) for row in rows], np.bool_)
        parent = None
        if document["parent"] is not None:
            verdicts = tuple(Verdict(_label(label), bool(ban)) for label, ban in document["parent"]["verdicts"])
            parent = (str(document["parent"]["id"]), verdicts)
            if len(verdicts) != len(rows):
                raise ValueError("rows are missing")
        return Outcomes(tuple(str(row[0]) for row in rows), labels, probabilities, called, bans, parent)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise WeightsError(
            f"{FILE} of {version_id} is damaged: copy the version again, or promote with --force --why"
        ) from error


def _label(value: Any) -> int:
    if value not in range(len(LABELS)):
        raise ValueError("no label")
    return int(value)
