"""A version's verdicts on test pictures, and the files beside it that tell of them.

    features of test pictures ─► the version's last layer, and the champion's ─► outcomes, figures ─► report.html

Also for a version that is in the store already, on any labelled folder (`evaluate_stored`). Nothing here changes a
version or chooses anything: test pictures only report and gate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer import contest, costs, dataset, figures, gallery, report
from trainer.arrays import DoubleArray, FloatArray, IntArray
from trainer.cache import FeatureCache
from trainer.dataset import Picture
from trainer.evaluate import count, decided, decisive
from trainer.features import Features, computer
from trainer.frozen import FrozenPart
from trainer.outcomes import Outcomes
from trainer.prepare import FeatureParts
from trainer.progress import Reporter
from trainer.recipes import FittedHead
from trainer.report import Material, Panel, Parent, Tile
from worker.decode import DecoderPool
from worker.errors import WeightsError
from worker.model import network as networks
from worker.model.labels import LABELS, RISKED
from worker.model.manifest import Manifest, ManifestDraft
from worker.model.weights import WeightsStore

TRAINING_TILES: Final = 8
"""Training pictures of each label in a report."""


@dataclass(frozen=True)
class Champion:
    """The version in service, and its probabilities [pictures, 3] of the same pictures: None where it stands on
    another base, network or preprocessing, for then it needs other features than those at hand."""

    manifest: Manifest
    probabilities: DoubleArray | None


def champion_on(
    store: WeightsStore, draft: ManifestDraft, head_input: FloatArray, features: Features
) -> Champion | None:
    """The draft's parent and its verdicts on `features`, whose `head_input` [frames, width] is of the draft's network.

    None where there is no parent.
    """
    if draft.parent is None:
        return None
    manifest = store.manifest(draft.parent)
    same = (manifest.network, manifest.base.sha256, manifest.preprocessing)
    if same != (draft.network, draft.base.sha256, draft.preprocessing):
        return Champion(manifest, None)
    logits = stored_head(store, manifest).logits(head_input)
    return Champion(manifest, decisive(logits, features.owner, manifest.temperature))


def stored_head(store: WeightsStore, manifest: Manifest) -> FittedHead:
    """The last layer of a stored version."""
    tensors, name = store.read_delta(manifest), networks.get(manifest.network).head
    return FittedHead(tensors[f"{name}.weight"].numpy(), tensors[f"{name}.bias"].numpy(), {})


def figures_of(
    probabilities: DoubleArray, labels: IntArray, ban_threshold: float | None, review_threshold: float | None
) -> dict[str, Any]:
    """The figures of a manifest with their intervals, from probabilities [pictures, 3]."""
    counted = count(probabilities, labels, ban_threshold, review_threshold)
    return counted | figures.with_intervals(probabilities, labels, ban_threshold)


def outcomes_of(
    draft: ManifestDraft, features: Features, probabilities: DoubleArray, champion: Champion | None
) -> Outcomes:
    """The outcomes to keep beside the version."""
    parent = None
    if champion is not None and champion.probabilities is not None:
        parent = (champion.manifest.id, champion.probabilities, contest.thresholds_of(champion.manifest))
    return Outcomes.of(features.pictures, probabilities, contest.thresholds_of(draft), parent)


def report_of(
    version: str,
    draft: ManifestDraft,
    store: WeightsStore,
    features: FeatureParts,
    outcomes: Outcomes,
    champion: Champion | None,
    decoders: DecoderPool,
    explained: Sequence[Panel] = (),
) -> bytes:
    """report.html of a version just fitted for `store`."""
    sample = _sample(features.fitted_on.pictures)
    shown = gallery.thumbnails(sample, decoders)
    training = {
        name: [
            Tile(shown[p.sha256], p.content_id, "", blurred=p.label == RISKED)
            for p in sample
            if p.label == label and p.sha256 in shown
        ]
        for label, name in enumerate(LABELS)
    }
    figures_, mistakes = _looked_at(features.test, outcomes, draft, draft.metrics["test"], decoders)
    parent = None if champion is None else _compared(store, version, champion, outcomes, draft)
    return report.write(Material(version, draft, figures_, mistakes, training, parent, explained=explained))


def evaluate_stored(
    store: WeightsStore,
    manifest: Manifest,
    folder: Path,
    part: FrozenPart,
    decoders: DecoderPool,
    reporter: Reporter,
    cache: FeatureCache | None = None,
) -> tuple[dict[str, Any], bytes]:
    """The figures of a stored version on the labelled pictures in `folder`, and a page of them.

    Features come from `cache` where it has them. Raises DataError where the folder is not usable, WeightsError where
    the version is not.
    """
    pictures, repeated, contradictory = dataset.once_each(dataset.scan(folder, "test"))
    if left := [*repeated, *contradictory]:
        names = dataset.listing([str(picture.path) for picture in left])
        reporter.say(f"{len(left)} test pictures repeat others or lie under two labels and are left out: {names}.")
    features = computer(part, decoders, reporter, cache)(pictures, "all", "Features of test pictures")
    if features.unreadable:
        names = dataset.listing([str(file.path) for file in features.unreadable])
        reporter.say(f"{len(features.unreadable)} test files are no usable pictures, left out: {names}.")
    dataset.check_test(features.pictures)
    logits = stored_head(store, manifest).logits(part.head_input(features.values))
    probabilities = decisive(logits, features.owner, manifest.temperature)
    outcomes = Outcomes.of(features.pictures, probabilities, contest.thresholds_of(manifest))
    counted = figures_of(probabilities, features.labels, manifest.ban_threshold, manifest.review_threshold)
    figures_, mistakes = _looked_at(features, outcomes, manifest, counted, decoders)
    page = report.write(Material(manifest.id, manifest, figures_, mistakes, on=str(folder)))
    return {"version": manifest.id, "test_digest": dataset.digest(features.pictures), **figures_}, page


def _sample(pictures: Sequence[Picture]) -> list[Picture]:
    """TRAINING_TILES of each label, by the hash of their bytes: a fair draw that is the same every time."""
    ordered = sorted(pictures, key=lambda picture: picture.sha256)
    return [p for label in range(len(LABELS)) for p in [p for p in ordered if p.label == label][:TRAINING_TILES]]


def _looked_at(
    features: Features,
    outcomes: Outcomes,
    draft: ManifestDraft,
    counted: Mapping[str, Any],
    decoders: DecoderPool,
) -> tuple[dict[str, Any], list[Tile]]:
    """All figures of test pictures, and the worst mistakes as tiles: only these are decoded once more."""
    probabilities, labels, ban = outcomes.probabilities, outcomes.labels, draft.ban_threshold
    pictures = features.pictures
    worst = figures.worst_mistakes(probabilities, labels, ban)
    shown = gallery.thumbnails([pictures[i] for i in worst], decoders)
    made = {
        **counted,
        "curves": figures.curves(probabilities, labels),
        "reliability": figures.reliability(probabilities, labels),
        "slices": figures.slices(probabilities, labels, ban, features.facts),
    }
    called = decided(probabilities, ban)
    tiles = [
        Tile(
            shown[pictures[i].sha256],
            pictures[i].content_id,
            f"{LABELS[labels[i]]}, called {LABELS[called[i]]} with {probabilities[i, called[i]]:.2f}",
            blurred=True,
        )
        for i in worst
        if pictures[i].sha256 in shown
    ]
    return made, tiles


def _compared(
    store: WeightsStore, version: str, champion: Champion, outcomes: Outcomes, draft: ManifestDraft
) -> Parent:
    other, now = champion.manifest, draft.metrics["test"]
    before = other.metrics.get("test", {})
    if champion.probabilities is not None:
        before = figures_of(champion.probabilities, outcomes.labels, *contest.thresholds_of(other))
    try:
        decision = contest.decide(store, version, draft, outcomes, other.id)
    except WeightsError:  # of what earlier versions keep of their tests, which promotion tells; this one stands
        decision = None
    costs_ = costs.comparison(draft, other)
    return Parent(other.id, figures.comparison(now, before), champion.probabilities is not None, costs_, decision)
