"""What a version made of each test picture, kept beside it, so that two versions can be compared picture by picture.

    test_outcomes.json: {"schema": 1, "rows": [[sha256, label, [p, p, p], called, banned, reviewed], …],
                         "parent": {"id": …, "verdicts": [[called, banned], …], "reviewed": [0, …]} | null}

Kept rather than computed again at promotion: what was promoted is then what was measured, promotion needs neither
pictures nor a forward pass, and a person can check the figures afterwards. `parent` has what the champion of that time
made of the same pictures, because its own test set may have been another: its last layer on the same features costs
nothing. What a person sees is missing in files of earlier releases, and stands where those that read them do not look.
About 110 bytes a picture, 150 with a parent. Knows nothing of networks, gates or the store.
"""

import json
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

from trainer.arrays import DoubleArray, IntArray
from trainer.dataset import Picture
from trainer.evaluate import banned, decided, reviewed
from worker.errors import WeightsError
from worker.model.labels import LABELS

FILE: Final = "test_outcomes.json"
FILE_MAX_BYTES: Final = 256 * 2**20
DECIMALS: Final = 5
"""Digits kept of a probability; what was decided stands beside it, so that rounding changes no outcome."""


class Verdict(NamedTuple):
    """What a version made of one picture: the label it called, whether it banned, and whether it would have a person
    see it; None where that is not known."""

    called: int
    banned: bool
    reviewed: bool | None = None


Thresholds = tuple[float | None, float | None]
"""From which p(risked) on a version bans, and from which on a person sees a picture; None: it has no such threshold."""


@dataclass(frozen=True)
class Outcomes:
    """Row by row: `sha256` of the bytes, `labels` int64 [n], `probabilities` float64 [n, 3], and the verdicts `made` of
    them. `parent` is the champion of that time and its verdicts on the same rows, where known."""

    sha256: tuple[str, ...]
    labels: IntArray
    probabilities: DoubleArray
    made: tuple[Verdict, ...]
    parent: tuple[str, tuple[Verdict, ...]] | None = None

    @classmethod
    def of(
        cls,
        pictures: tuple[Picture, ...],
        probabilities: DoubleArray,
        thresholds: Thresholds,
        parent: tuple[str, DoubleArray, Thresholds] | None = None,
    ) -> "Outcomes":
        """From `pictures` and their probabilities [n, 3]; `parent` is (id, its probabilities, its thresholds)."""
        return cls(
            tuple(picture.sha256 for picture in pictures),
            np.array([picture.label for picture in pictures], np.int64),
            probabilities,
            _verdicts(probabilities, thresholds),
            None if parent is None else (parent[0], _verdicts(*parent[1:])),
        )

    def knowing(self, thresholds: Thresholds) -> "Outcomes":
        """With what a person sees worked out from the kept probabilities by the version's `thresholds`, where an
        earlier release did not keep it: right but for a picture that lies on a threshold to DECIMALS digits."""
        if all(verdict.reviewed is not None for verdict in self.made):
            return self
        seen = reviewed(self.probabilities, *thresholds).tolist()
        made = (v._replace(reviewed=see and not v.banned) for v, see in zip(self.made, seen, strict=True))
        return replace(self, made=tuple(made))

    def verdicts(self) -> dict[str, tuple[int, Verdict]]:
        """By SHA-256: the true label and this version's verdict."""
        return self._keyed(self.made)

    def of_parent(self) -> dict[str, tuple[int, Verdict]]:
        """As `verdicts`, of the parent; empty where it is not known."""
        return self._keyed(self.parent[1]) if self.parent else {}

    def _keyed(self, verdicts: tuple[Verdict, ...]) -> dict[str, tuple[int, Verdict]]:
        rows = zip(self.sha256, self.labels.tolist(), verdicts, strict=True)
        return {sha256: (label, verdict) for sha256, label, verdict in rows}

    def to_json(self) -> bytes:
        """The bytes of test_outcomes.json, a row a line."""
        rows = zip(self.verdicts().items(), self.probabilities.round(DECIMALS).tolist(), strict=True)
        lines = [
            json.dumps([sha256, label, p, v.called, int(v.banned), *_said(v)], separators=(",", ":"))
            for (sha256, (label, v)), p in rows
        ]
        parent: dict[str, Any] | None = None
        if self.parent is not None:
            parent = {"id": self.parent[0], "verdicts": [[v.called, int(v.banned)] for v in self.parent[1]]}
            if seen := [one for v in self.parent[1] for one in _said(v)]:
                parent["reviewed"] = seen
        head = f'{{"schema":1,"labels":{json.dumps(LABELS)},"rows":[\n'
        tail = f'\n],"parent":{json.dumps(parent, separators=(",", ":"))}}}\n'
        return (head + ",\n".join(lines) + tail).encode()


def parse(content: bytes, version_id: str) -> Outcomes:
    """The outcomes in the file of a version. Raises WeightsError where they are damaged."""
    try:
        document: dict[str, Any] = json.loads(content)
        if document["schema"] != 1 or document["labels"] != list(LABELS):
            raise ValueError("another schema")
        rows, before = document["rows"], document["parent"]
        if len({len(row) for row in rows}) > 1:
            raise ValueError("columns are missing")
        labels = np.array([_label(row[1]) for row in rows], np.int64)
        probabilities = np.array([row[2] for row in rows], np.float64).reshape(len(rows), len(LABELS))
        made = tuple(_verdict(row[3], row[4], *row[5:]) for row in rows)
        parent = None
        if before is not None:
            called = before["verdicts"]
            seen = before.get("reviewed", [None] * len(called))
            parent = (
                str(before["id"]),
                tuple(_verdict(label, ban, see) for (label, ban), see in zip(called, seen, strict=True)),
            )
            if len(called) != len(rows):
                raise ValueError("rows are missing")
        return Outcomes(tuple(str(row[0]) for row in rows), labels, probabilities, made, parent)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise WeightsError(
            f"{FILE} of {version_id} is damaged: copy the version again, or promote with --force --why"
        ) from error


def _verdicts(probabilities: DoubleArray, thresholds: Thresholds) -> tuple[Verdict, ...]:
    columns = decided(probabilities, thresholds[0]), banned(probabilities, thresholds[0])
    rows = zip(*(column.tolist() for column in (*columns, reviewed(probabilities, *thresholds))), strict=True)
    return tuple(Verdict(*row) for row in rows)


def _verdict(called: Any, ban: Any, see: Any = None) -> Verdict:
    return Verdict(_label(called), bool(ban), None if see is None else bool(see))


def _said(verdict: Verdict) -> list[int]:
    return [] if verdict.reviewed is None else [int(verdict.reviewed)]


def _label(value: Any) -> int:
    if value not in range(len(LABELS)):
        raise ValueError("no label")
    return int(value)
