"""One training run, a straight line from labelled folders to a published version.

    scan ─► split ─► frozen features ─► recipe ─► calibrate ─► evaluate ─► check engines ─► report ─► publish
    ─► take its place

Each step is a module of its own; this one only hands on what they return. Nothing is written to the store
before everything that can fail for want of data has succeeded.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from trainer import asked, assess, calibrate, dataset, engines, explain, maps, operating, prepare, recipes, release
from trainer.arrays import DoubleArray, FloatArray
from trainer.asked import Asked
from trainer.bases import CHAMPION, load_base, warn_of_trial
from trainer.cache import MAX_BYTES, FeatureCache
from trainer.calibrate import Calibration
from trainer.evaluate import count, decisive, log_loss
from trainer.features import computer
from trainer.frozen import FrozenPart
from trainer.outcomes import FILE as OUTCOMES_FILE
from trainer.prepare import FeatureParts, Parts
from trainer.progress import Reporter
from trainer.recipes import FittedHead
from trainer.report import FILE as REPORT_FILE
from trainer.shapley import Head
from trainer.tables import Tables
from worker.decode import DecoderPool
from worker.errors import UsageError, WeightsError
from worker.model import devices
from worker.model import network as networks
from worker.model.manifest import BaseRef, Manifest, ManifestDraft, identity
from worker.model.network import Network
from worker.model.preprocessing import DecodeLimits, Preprocessing
from worker.model.tensors import state_dict, tensors_digest
from worker.model.weights import WeightsStore

Recipe = Literal["article", "default"]

Prepares = Literal["champion", "default"]

DECODE_TIMEOUT_S: Final = 8.0
"""Seconds one picture may take to decode, as in the worker."""

DECODE_MEMORY_BYTES: Final = 1536 * 2**20
"""Memory one picture may take to decode, as in the worker."""

DECODERS_MAX: Final = 8


@dataclass(frozen=True)
class Plan:
    """What a run is asked for. `base` is `imagenet`, `champion`, `random:SEED` or a file's path; `epochs` is the
    article's; `asked` says what thresholds are fitted for; `explained` is how many test pictures the report has Shapley
    maps of; `preprocessing` says whether pictures are prepared as the champion does, where there is one of this
    network, or as this release does by default.

    `cache` is the folder that keeps features and takes large tables; with None nothing is kept, and all is in memory.
    """

    train: Path
    test: Path
    by: str
    base: str = "imagenet"
    recipe: Recipe = "default"
    epochs: int = recipes.ARTICLE_EPOCHS
    ban_threshold: float | None = None
    asked: Asked = field(default_factory=Asked)
    network: str = "vgg11"
    device: str = "auto"
    cache: Path | None = None
    cache_max_bytes: int = MAX_BYTES
    explained: int = 0
    preprocessing: Prepares = "champion"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(f"{self.epochs} epochs fit nothing: give 1 or more.")
        if self.ban_threshold is not None:
            calibrate.check_ban_threshold(self.ban_threshold)


def fit(
    plan: Plan, store: WeightsStore, reporter: Reporter, *, parts: Parts | None = None, locked: bool = False
) -> Manifest:
    """Train a version as planned, publish it, and make it champion (the store's first) or challenger.

    `parts` are the plan's pictures where they have been gathered already; `locked` says that the caller holds the
    store's run lock. Raises UsageError, DataError, WeightsError, UnavailableError, and LockedError where another run
    is at work.
    """
    started_s = time.monotonic()
    device = devices.choose(plan.device)
    with nullcontext() if locked else release.one_run(store):
        parent = store.champion()  # read first: a damaged store is found out before the work, not after it
        parts = parts or prepare.gather(plan.train, plan.test, reporter)
        network = networks.get(plan.network)
        base, source, kept = _base(plan, store, parent, network, reporter)
        plan = replace(plan, asked=_asked(plan, store, parent, reporter))
        preprocessing = _preprocessing(plan, store, parent)
        frozen = FrozenPart(network, base, preprocessing, device, Tables(plan.cache))
        with open_cache(plan, frozen, reporter) as cache, decoder_pool(preprocessing) as decoders:
            features = prepare.compute_all(parts, computer(frozen, decoders, reporter, cache), reporter)
            head = fit_head(plan, frozen, features, reporter)
            judged = judge(plan, frozen, head, features)
            reporter.say(judged.calibration.explanation)
            delta = _delta(network, head)
            base_ref = kept or store.add_base(base, source)
            for_engines = engines.prepare(
                network,
                state_dict(base, delta),
                features.fitted_on.pictures,
                [*features.test.pictures, *features.held_out.pictures],
                decoders,
                preprocessing,
                judged.calibration.temperature,
                store,
                engines.known_from(store, parent, base_ref, preprocessing),
                device,
            )
            draft = ManifestDraft(
                network=plan.network,
                preprocessing=preprocessing.to_json(),
                base=base_ref,
                temperature=judged.calibration.temperature,
                ban_threshold=judged.calibration.ban_threshold,
                ban_threshold_proven=judged.calibration.ban_threshold_proven,
                review_threshold=judged.calibration.review_threshold,
                metrics=judged.metrics,
                parent=parent,
                data=prepare.describe(features),
                provenance=_provenance(plan, source, head, judged.calibration, device, time.monotonic() - started_s),
                engines=for_engines.checks,
                activation_ranges=for_engines.ranges,
                check_pictures=for_engines.pictures,
            )
            champion = assess.champion_on(store, draft, judged.test_head_input, features.test)
            outcomes = assess.outcomes_of(draft, features.test, judged.test_probabilities, champion)
            version_id = identity(draft, tensors_digest(delta))
            after = Head(version_id, head, draft.temperature)
            explained = explain.of_test_pictures(
                draft, base, after, features, outcomes, plan.explained, device, decoders, reporter
            )
            panels = maps.panels(explained)
            page = assess.report_of(version_id, draft, features, outcomes, champion, decoders, panels)
        files = {OUTCOMES_FILE: outcomes.to_json(), REPORT_FILE: page}
        done = "Judged again, its training pictures being the same," if version_id in store.versions() else "Published"
        manifest = store.publish(draft, delta, files)
        role = release.take_its_place(store, manifest.id, by=plan.by)
    accuracy = manifest.metrics["test"]["accuracy"]
    reporter.say(f"{done} {manifest.id} as {role}: test accuracy {accuracy:.3f}.")
    return manifest


def _base(
    plan: Plan, store: WeightsStore, champion: str | None, network: Network, reporter: Reporter
) -> tuple[dict[str, Tensor], str, BaseRef | None]:
    """The tensors to start from, where they come from, and what the store has of them already."""
    if plan.base != CHAMPION:
        return *load_base(plan.base, network, reporter), None
    manifest = None if champion is None else store.manifest(champion)
    if manifest is None or manifest.network != plan.network:
        return *load_base("imagenet", network, reporter), None
    warn_of_trial(manifest.base.source, reporter)
    try:
        tensors = store.read_base(manifest.base.sha256, manifest.base.bytes)
    except WeightsError as error:
        raise WeightsError(f"The champion's base cannot be had: {error}; or name another with --base.") from error
    return tensors, manifest.base.source, manifest.base


def _preprocessing(plan: Plan, store: WeightsStore, champion: str | None) -> Preprocessing:
    """As `Plan.preprocessing` says: running workers refuse a version that prepares pictures in another way than the
    one in service, and the gate can then pair its verdicts with the champion's of that time only."""
    if champion is None or plan.preprocessing == "default":
        return Preprocessing()
    manifest = store.manifest(champion)
    same_network = manifest.network == plan.network
    return Preprocessing.from_json(manifest.preprocessing) if same_network else Preprocessing()


def _asked(plan: Plan, store: WeightsStore, champion: str | None, reporter: Reporter) -> Asked:
    """What thresholds are fitted for: as planned, else as the champion's were, where it is of this network."""
    manifest = None if champion is None else store.manifest(champion)
    if manifest is not None and manifest.network != plan.network:
        manifest = None
    return asked.completed(plan.asked, manifest, reporter.say, threshold_given=plan.ban_threshold is not None)


@contextmanager
def open_cache(plan: Plan, frozen: FrozenPart, reporter: Reporter) -> Iterator[FeatureCache | None]:
    """The plan's feature cache for what `frozen` computes; None where the plan has none."""
    if plan.cache is None:
        yield None
        return
    with FeatureCache(plan.cache, frozen.key, frozen.dtype, reporter.say, plan.cache_max_bytes) as cache:
        yield cache


def decoder_pool(preprocessing: Preprocessing) -> DecoderPool:
    """Decoders with the worker's limits, for half the cores."""
    return DecoderPool(
        preprocessing,
        DecodeLimits(),
        processes=max(1, min(DECODERS_MAX, (os.cpu_count() or 1) // 2)),
        timeout_s=DECODE_TIMEOUT_S,
        memory_bytes=DECODE_MEMORY_BYTES,
    )


def fit_head(plan: Plan, frozen: FrozenPart, features: FeatureParts, reporter: Reporter) -> FittedHead:
    """The last layer by the planned recipe."""
    if plan.recipe == "article":
        reporter.say("As published, this recipe keeps the epoch that is best on the test pictures: that flatters it.")
        return recipes.fit_article(frozen, features.fitted_on, features.test, plan.epochs, recipes.SEED, reporter)
    fitted_on = features.fitted_on
    head_input = frozen.head_input(fitted_on.values)
    return recipes.fit_default(head_input, fitted_on.labels, recipes.SEED, reporter, frozen.tables)


@dataclass(frozen=True)
class Judgement:
    """Calibration, the manifest's metrics, and of the test pictures probabilities [pictures, 3] and head input."""

    calibration: Calibration
    metrics: dict[str, Any]
    test_probabilities: DoubleArray
    test_head_input: FloatArray


def judge(plan: Plan, frozen: FrozenPart, head: FittedHead, features: FeatureParts) -> Judgement:
    """Calibrate on the held-out part for what `plan.asked` says, then report on it and on the test part."""
    held_out, test = features.held_out, features.test
    aims, given = plan.asked.aims(), plan.asked.given()
    at = operating.prevalence(given, dataset.counts([*features.fitted_on.pictures, *held_out.pictures]))
    logits = head.logits(frozen.head_input(held_out.values))
    calibration = calibrate.calibrate(logits, held_out.owner, held_out.labels, plan.ban_threshold, aims, at)
    thresholds = (calibration.ban_threshold, calibration.review_threshold)
    held_out_probabilities = decisive(logits, held_out.owner, calibration.temperature)
    test_head_input = frozen.head_input(test.values)
    test_probabilities = decisive(head.logits(test_head_input), test.owner, calibration.temperature)
    uncalibrated = log_loss(decisive(logits, held_out.owner, 1.0), held_out.labels)
    metrics = {
        "test": assess.figures_of(test_probabilities, test.labels, *thresholds),
        "held_out": count(held_out_probabilities, held_out.labels, *thresholds)
        | {"log_loss_uncalibrated": uncalibrated},
        "operating": calibration.operating | plan.asked.noted(),
    }
    return Judgement(calibration, metrics, test_probabilities, test_head_input)


def _delta(network: Network, head: FittedHead) -> dict[str, Tensor]:
    return {
        f"{network.head}.weight": torch.from_numpy(head.weight),
        f"{network.head}.bias": torch.from_numpy(head.bias),
    }


def _provenance(
    plan: Plan, source: str, head: FittedHead, calibration: Calibration, device: torch.device, seconds: float
) -> dict[str, Any]:
    return {
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "by": plan.by,
        "recipe": plan.recipe,
        "epochs": plan.epochs if plan.recipe == "article" else None,
        "seed": recipes.SEED,
        "hyperparameters": head.hyperparameters,
        "calibration": calibration.explanation,
        "base_source": source,
        "torch": torch.__version__,
        "device": device.type,
        "seconds": round(seconds, 1),
    }
