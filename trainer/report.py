"""What is known about a version in, one HTML page out that needs nothing else.

    Material ─► charts as SVG ─► pages.render(templates/report.html) ─► bytes of report.html

Computes no figure; those come from `figures`, `evaluate`, `operating` and `gate`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trainer import charts, pages
from trainer.checks import Decision
from worker.model.labels import LABELS
from worker.model.manifest import ManifestDraft

FILE: Final = "report.html"


@dataclass(frozen=True)
class Tile:
    """A thumbnail: its data URI, who it is, what is said about it, and whether it is blurred until clicked."""

    uri: str
    name: str
    said: str
    blurred: bool


@dataclass(frozen=True)
class Panel:
    """A picture explained: its thumbnail, and a row for each network: who says it, and (data URI, caption) of maps."""

    tile: Tile
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Parent:
    """The version that was champion: rows of (name, before, now, digits) on test pictures, on which, such rows of what
    either is expected to do in service, and what the gate would say."""

    id: str
    rows: Sequence[Mapping[str, Any]]
    same_pictures: bool
    costs: Sequence[Mapping[str, Any]]
    decision: Decision | None


@dataclass(frozen=True)
class Material:
    """All that a page shows. `figures` is `metrics.test` with intervals, curves, reliability and slices; `training`
    has tiles by label, `explained` Shapley maps of test pictures; `on` names the pictures where they are not the
    version's own test pictures."""

    version: str
    draft: ManifestDraft
    figures: Mapping[str, Any]
    mistakes: Sequence[Tile]
    training: Mapping[str, Sequence[Tile]] = field(default_factory=dict)
    parent: Parent | None = None
    on: str | None = None
    explained: Sequence[Panel] = ()


def write(material: Material) -> bytes:
    """The page, UTF-8. File names that are no text are shown with replacement characters."""
    return pages.render(
        FILE,
        m=material,
        draft=material.draft,
        figures=material.figures,
        operating=material.draft.metrics.get("operating"),
        charts=_charts(material),
        labels=LABELS,
        facts=_facts(material.draft),
    )


def _charts(material: Material) -> dict[str, str]:
    figures, made = material.figures, {}
    made["confusion"] = charts.confusion(figures["confusion"], LABELS)
    made["precision_recall"] = charts.precision_recall(figures["curves"])
    made["roc"] = charts.roc(figures["curves"])
    made["reliability"] = charts.reliability(figures["reliability"])
    chosen: Mapping[str, Any] = material.draft.provenance.get("hyperparameters") or {}
    if isinstance(chosen.get("epochs"), list):
        made["training"] = charts.epochs(chosen["epochs"], int(chosen["best_epoch"]))
    elif chosen.get("cross_validation"):
        made["training"] = charts.cross_validation(chosen["cross_validation"], f"{chosen.get('c', 0):g}")
    return made


def _facts(draft: ManifestDraft) -> list[tuple[str, str]]:
    """Provenance as rows of text."""
    origin = draft.provenance
    rows = [
        ("made", f"{origin.get('created_at', 'unknown')} by {origin.get('by', 'unknown')}"),
        ("parent", draft.parent or "none"),
        ("network", draft.network),
        ("base", f"{draft.base.source}, SHA-256 {draft.base.sha256}"),
        ("recipe", str(origin.get("recipe", "unknown"))),
        ("temperature", f"{draft.temperature:g}"),
        (
            "ban threshold",
            "none: this version never bans" if draft.ban_threshold is None else f"{draft.ban_threshold:g}",
        ),
        ("review threshold", "none" if draft.review_threshold is None else f"{draft.review_threshold:g}"),
        ("training pictures", str(draft.data.get("digest", "unknown"))),
        ("test pictures", str(draft.data.get("test_digest", "unknown"))),
        ("torch", f"{origin.get('torch', 'unknown')} on {origin.get('device', 'unknown')}"),
        ("seed", str(origin.get("seed", "unknown"))),
        ("time", f"{origin.get('seconds', 'unknown')} s before this page"),
    ]
    for part, counts in draft.data.get("counts", {}).items():
        rows.append((part.replace("_", " "), ", ".join(f"{count} {name}" for name, count in counts.items())))
    for name, check in draft.engines.items():
        rows.append((name, f"{'passed' if check.passed else 'not passed'}: {check.flips} of {check.clear_pictures}"))
    return rows
