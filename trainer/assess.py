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
from trainer.dataset import Picture
from trainer.evaluate import count, decided, decisive
from trainer.features import Compute, Features
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


@dataclass(frozen=True)
class Newcomer:
    """A version that is about to be published: its id and manifest, the features that it was made and tested on, what
    became of the test pictures, and the version in service, if there is one."""

    id: str
    draft: ManifestDraft
    features: FeatureParts
    outcomes: Outcomes
    champion: Champion | None


def newcomer(
    version: str,
    draft: ManifestDraft,
    store: WeightsStore,
    features: FeatureParts,
    probabilities: DoubleArray,
    head_input: FloatArray,
) -> Newcomer:
    """With its `probabilities` [pictures, 3] of the test pictures, whose `head_input` is [frames, width]."""
    champion = _champion_on(store, draft, head_input, features.test)
    outcomes = _outcomes_of(draft, features.test, probabilities, champion)
    return Newcomer(version, draft, features, outcomes, champion)


def _champion_on(
    store: WeightsStore, draft: ManifestDraft, head_input: FloatArray, features: Features
) -> Champion | None:
    """The draft's parent and its verdicts on `features`; None where there is no parent."""
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


def _outcomes_of(
    draft: ManifestDraft, features: Features, probabilities: DoubleArray, champion: Champion | None
) -> Outcomes:
    parent = None
    if champion is not None and champion.probabilities is not None:
        parent = (champion.manifest.id, champion.probabilities, contest.thresholds_of(champion.manifest))
    return Outcomes.of(features.pictures, probabilities, contest.thresholds_of(draft), parent)


def report_of(new: Newcomer, store: WeightsStore, decoders: DecoderPool, explained: Sequence[Panel]) -> bytes:
    """report.html of a version just fitted for `store`."""
    draft = new.draft
    sample = _sample(new.features.fitted_on.pictures)
    shown = gallery.thumbnails(sample, decoders)
    training = {
        name: [
            Tile(shown[p.sha256], p.content_id, "", blurred=p.label == RISKED)
            for p in sample
            if p.label == label and p.sha256 in shown
        ]
        for label, name in enumerate(LABELS)
    }
    figures_, mistakes = _looked_at(new.features.test, new.outcomes, draft, draft.metrics["test"], decoders)
    parent = None if new.champion is None else _compared(new, new.champion, store)
    return report.write(Material(new.id, draft, figures_, mistakes, training, parent, explained=explained))


def evaluate_stored(
    store: WeightsStore,
    manifest: Manifest,
    folder: Path,
    part: FrozenPart,
    compute: Compute,
    decoders: DecoderPool,
    reporter: Reporter,
) -> tuple[dict[str, Any], bytes]:
    """The figures of a stored version on the labelled pictures in `folder`, and a page of them.

    `compute` makes features by `part`. Raises DataError where the folder is not usable, WeightsError where the version
    is not.
    """
    pictures, repeated, contradictory = dataset.once_each(dataset.scan(folder, "test"))
    if left := [*repeated, *contradictory]:
        names = dataset.listing([str(picture.path) for picture in left])
        reporter.say(f"{len(left)} test pictures repeat others or lie under two labels and are left out: {names}.")
    features = compute(pictures, "all", "Features of test pictures")
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


def _compared(new: Newcomer, champion: Champion, store: WeightsStore) -> Parent:
    other, now = champion.manifest, new.draft.metrics["test"]
    before = other.metrics.get("test", {})
    if champion.probabilities is not None:
        before = figures_of(champion.probabilities, new.outcomes.labels, *contest.thresholds_of(other))
    try:
        decision = contest.decide(store, new.id, new.draft, new.outcomes, other.id)
    except WeightsError:  # of what earlier versions keep of their tests, which promotion tells; this one stands
        decision = None
    costs_ = costs.comparison(new.draft, other)
    return Parent(other.id, figures.comparison(now, before), champion.probabilities is not None, costs_, decision)
