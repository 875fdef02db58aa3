"""One training run, a straight line from labelled folders to a published version.

    scan ─► split ─► frozen features ─► recipe ─► calibrate ─► evaluate ─► check engines ─► report ─► publish
    ─► take its place

Each step is a module of its own; this one only hands on what they return. Nothing is written to the store
before everything that can fail for want of data has succeeded.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from trainer import asked, assess, calibrate, dataset, engines, explain, maps, operating, prepare, recipes, release
from trainer.arrays import DoubleArray, FloatArray
from trainer.cache import FeatureCache
from trainer.calibrate import Calibration
from trainer.decoding import decoder_pool
from trainer.evaluate import count, decisive, log_loss
from trainer.features import computer
from trainer.frozen import FrozenPart
from trainer.outcomes import FILE as OUTCOMES_FILE
from trainer.plan import Plan, asked_of, base_of, preprocessing_of
from trainer.prepare import FeatureParts, Parts
from trainer.progress import Reporter
from trainer.recipes import FittedHead
from trainer.report import FILE as REPORT_FILE
from trainer.shapley import Head
from trainer.tables import Tables
from worker.model import devices
from worker.model import network as networks
from worker.model.manifest import Manifest, ManifestDraft, identity
from worker.model.network import Network
from worker.model.tensors import state_dict, tensors_digest
from worker.model.weights import WeightsStore


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
        parent = store.in_service()  # read first: a damaged store is found out before the work, not after it
        parts = parts or prepare.gather(plan.train, plan.test, reporter)
        network = networks.get(plan.network)
        base, source, kept = base_of(plan, store, parent, network, reporter)
        plan = replace(plan, asked=asked_of(plan, store, parent, reporter))
        preprocessing = preprocessing_of(plan, store, parent)
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
            page = assess.report_of(version_id, draft, store, features, outcomes, champion, decoders, panels)
        files = {OUTCOMES_FILE: outcomes.to_json(), REPORT_FILE: page}
        done = "Judged again, its training pictures being the same," if version_id in store.versions() else "Published"
        _note_refit(store, version_id, draft, plan.by, reporter)
        manifest = store.publish(draft, delta, files)
        role = release.take_its_place(store, manifest.id, by=plan.by)
    accuracy = manifest.metrics["test"]["accuracy"]
    reporter.say(f"{done} {manifest.id} as {role}: test accuracy {accuracy:.3f}.")
    return manifest


def _note_refit(store: WeightsStore, version_id: str, draft: ManifestDraft, by: str, reporter: Reporter) -> None:
    """Say and put on record where the champion, made again, will be held to something else or tested on other pictures:
    nothing else of it changes, so that nobody would see what later versions are measured by."""
    if version_id != store.champion():
        return
    standing = store.manifest(version_id)
    changes = asked.changed(standing.metrics, draft.metrics)
    digests = [str(data.get("test_digest", "unknown"))[:12] for data in (standing.data, draft.data)]
    if digests[0] != digests[1]:
        changes.append(f"test pictures {digests[0]} -> {digests[1]}")
    if changes:
        why = f"fitted again: {', '.join(changes)}"
        reporter.say(f"The champion {version_id} is {why}; history.jsonl has it on record.")
        store.note_refit(version_id, by=by, why=why)


@contextmanager
def open_cache(plan: Plan, frozen: FrozenPart, reporter: Reporter) -> Iterator[FeatureCache | None]:
    """The plan's feature cache for what `frozen` computes; None where the plan has none."""
    if plan.cache is None:
        yield None
        return
    with FeatureCache(plan.cache, frozen.key, frozen.dtype, reporter.say, plan.cache_max_bytes) as cache:
        yield cache


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
