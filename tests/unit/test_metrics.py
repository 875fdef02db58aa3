"""A worker's own metrics: what exists before anything has happened."""

from itertools import product

from worker.metrics import Metrics
from worker.model.labels import LABELS
from worker.verdict import Probabilities, Verdict


def kinds() -> set[tuple[str, str, str]]:
    """(label, ban, review) of all verdicts that can be built."""
    found = set()
    for label, ban, review in product(LABELS, (False, True), (False, True)):
        placement = "removed" if ban else "author_only"
        said = {"content_id": "a", "label": label, "ban": ban, "review": review, "placement": placement, "frames": 1}
        try:
            Verdict.model_validate(
                said | {"probabilities": Probabilities(approved=0, not_suitable=0, risked=1), "weights": "v1",
                        "engine": "cpu-fp32", "content_sha256": None, "enqueued_at": "2026-11-24T02:00:00.000Z"}
            )  # fmt: skip
        except ValueError:
            continue
        found.add((label, str(int(ban)), str(int(review))))
    return found


def test_a_version_in_service_has_all_its_series_at_0() -> None:
    """Prometheus sees no increase in a series that begins with its first verdict: at few bans most would go unseen."""
    metrics = Metrics()
    metrics.serving("v1", "cpu-fp32", None)
    samples = {
        (family.name, *(sample.labels.get(name, "") for name in ("label", "ban", "review", "weights"))): sample.value
        for family in (*metrics.verdicts.collect(), *metrics.decisions.collect())
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    verdicts = {("moderation_verdicts", *kind, "v1"): 0.0 for kind in kinds()}
    decisions = {("moderation_decisions", label, ban, "", "v1"): 0.0 for label, ban, _ in kinds()}
    assert samples == verdicts | decisions
    metrics.serving("v2", "cpu-fp32", None)
    assert metrics.registry.get_sample_value(
        "moderation_decisions_total", {"label": "risked", "ban": "1", "weights": "v2"}
    ) == 0  # fmt: skip


def test_fallbacks_and_the_engine_in_service_are_metrics() -> None:
    metrics = Metrics()
    metrics.serving("tiny-0", "cpu-fp32", None)
    metrics.engine_fallbacks.labels("cpu-bf16", "not_native").inc()
    metrics.engine("tiny-0", "cpu-int8")
    value = metrics.registry.get_sample_value
    assert value("moderation_engine_fallbacks_total", {"engine": "cpu-bf16", "reason": "not_native"}) == 1
    info = {"role": "champion", "weights": "tiny-0"}
    assert value("moderation_weights_info", {**info, "engine": "cpu-int8"}) == 1
    assert value("moderation_weights_info", {**info, "engine": "cpu-fp32"}) is None
    assert value("moderation_weights_loads_total", {"outcome": "loaded"}) == 1
