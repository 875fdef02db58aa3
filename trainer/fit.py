"""One training run, a straight line from labelled folders to a published version.

    scan ─► split ─► frozen features ─► recipe ─► calibrate ─► evaluate ─► check engines ─► report ─► publish
    ─► take its place

Each step is a module of its own; this one only hands on what they return. Nothing is written to the store
before everything that can fail for want of data has succeeded.
"""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from trainer import asked, assess, calibrate, dataset, engines, explain, maps, operating, prepare, recipes, release
from trainer.arrays import DoubleArray, FloatArray
from trainer.calibrate import Calibration
from trainer.evaluate import count, decisive, log_loss
from trainer.features import computing
from trainer.frozen import FrozenPart
from trainer.outcomes import FILE as OUTCOMES_FILE
from trainer.plan import Plan, Start, start_from
from trainer.prepare import FeatureParts, Parts
from trainer.progress import Reporter
from trainer.recipes import FittedHead
from trainer.report import FILE as REPORT_FILE
from trainer.tables import Tables
from worker.decode import DecoderPool
from worker.model import devices
from worker.model.manifest import Manifest, ManifestDraft, identity
from worker.model.network import Network
from worker.model.tensors import state_dict, tensors_digest
from worker.model.weights import WeightsStore


@dataclass(frozen=True)
class Judgement:
    """Calibration, the manifest's metrics, and of the test pictures probabilities [pictures, 3] and head input."""

    calibration: Calibration
    metrics: dict[str, Any]
    test_probabilities: DoubleArray
    test_head_input: FloatArray


@dataclass(frozen=True)
class Run:
    """What all steps of one run share."""

    start: Start
    store: WeightsStore
    frozen: FrozenPart
    decoders: DecoderPool
    reporter: Reporter

    @property
    def plan(self) -> Plan:
        """What is asked for, with nothing left open."""
        return self.start.plan


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
        champion = store.in_service()  # read first: a damaged store is found out before the work, not after it
        parts = parts or prepare.gather(plan.train, plan.test, reporter)
        start = start_from(plan, store, champion, reporter)
        frozen = FrozenPart(start.network, start.base, start.preprocessing, device, Tables(plan.cache))
        with computing(frozen, reporter, plan.cache, plan.cache_max_bytes) as (compute, decoders):
            run = Run(start, store, frozen, decoders, reporter)
            features = prepare.compute_all(parts, compute, reporter)
            head = fit_head(run.plan, frozen, features, reporter)
            judged = judge(run.plan, frozen, head, features)
            reporter.say(judged.calibration.explanation)
            delta = _delta(start.network, head)
            draft = _draft(run, features, head, delta, judged, started_s)
            version_id = identity(draft, tensors_digest(delta))
            files = _files(run, version_id, draft, features, head, judged)
        return _publish(run, version_id, draft, delta, files)


def _draft(
    run: Run,
    features: FeatureParts,
    head: FittedHead,
    delta: Mapping[str, Tensor],
    judged: Judgement,
    started_s: float,
) -> ManifestDraft:
    """The manifest, and in the store what it names: the base, and the pictures that engines are compared on."""
    start, store, device, calibration = run.start, run.store, run.frozen.device, judged.calibration
    base = start.kept or store.add_base(start.base, start.source)
    state, temperature = state_dict(start.base, delta), calibration.temperature
    whole = engines.Whole(start.network, state, start.preprocessing, temperature, calibration.ban_threshold)
    tested_on = [*features.test.pictures, *features.held_out.pictures]
    known = engines.known_from(store, start.champion, base, start.preprocessing)
    fitted_on = features.fitted_on.pictures
    made = engines.prepare(whole, fitted_on, tested_on, run.decoders, store, known, device, run.reporter)
    return ManifestDraft(
        network=start.network.name,
        preprocessing=start.preprocessing.to_json(),
        base=base,
        temperature=temperature,
        ban_threshold=calibration.ban_threshold,
        ban_threshold_proven=calibration.ban_threshold_proven,
        review_threshold=calibration.review_threshold,
        metrics=judged.metrics,
        parent=start.champion,
        data=prepare.describe(features),
        provenance=_provenance(start, head, calibration, device, time.monotonic() - started_s),
        engines=made.checks,
        activation_ranges=made.ranges,
        check_pictures=made.pictures,
    )


def _files(
    run: Run, version_id: str, draft: ManifestDraft, features: FeatureParts, head: FittedHead, judged: Judgement
) -> dict[str, bytes]:
    """What lies beside the manifest: what became of each test picture, and the report."""
    store, decoders, device = run.store, run.decoders, run.frozen.device
    new = assess.newcomer(version_id, draft, store, features, judged.test_probabilities, judged.test_head_input)
    explained = explain.of_test_pictures(new, run.start.base, head, run.plan.explained, device, decoders, run.reporter)
    page = assess.report_of(new, store, decoders, maps.panels(explained))
    return {OUTCOMES_FILE: new.outcomes.to_json(), REPORT_FILE: page}


def _publish(
    run: Run, version_id: str, draft: ManifestDraft, delta: Mapping[str, Tensor], files: Mapping[str, bytes]
) -> Manifest:
    """Into the store, and to its place there."""
    store, by = run.store, run.plan.by
    done = "Judged again, its training pictures being the same," if version_id in store.versions() else "Published"
    _note_refit(store, version_id, draft, by, run.reporter)
    manifest = store.publish(draft, delta, files)
    role = release.take_its_place(store, manifest.id, by=by)
    run.reporter.say(f"{done} {manifest.id} as {role}: test accuracy {manifest.metrics['test']['accuracy']:.3f}.")
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


def fit_head(plan: Plan, frozen: FrozenPart, features: FeatureParts, reporter: Reporter) -> FittedHead:
    """The last layer by the planned recipe."""
    if plan.recipe == "article":
        reporter.say("As published, this recipe keeps the epoch that is best on the test pictures: that flatters it.")
        return recipes.fit_article(frozen, features.fitted_on, features.test, plan.epochs, recipes.SEED, reporter)
    fitted_on = features.fitted_on
    head_input = frozen.head_input(fitted_on.values)
    return recipes.fit_default(head_input, fitted_on.labels, recipes.SEED, reporter, frozen.tables)


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
    start: Start, head: FittedHead, calibration: Calibration, device: torch.device, seconds: float
) -> dict[str, Any]:
    plan = start.plan
    return {
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "by": plan.by,
        "recipe": plan.recipe,
        "epochs": plan.epochs if plan.recipe == "article" else None,
        "seed": recipes.SEED,
        "hyperparameters": head.hyperparameters,
        "calibration": calibration.explanation,
        "base_source": start.source,
        "torch": torch.__version__,
        "device": device.type,
        "seconds": round(seconds, 1),
    }
