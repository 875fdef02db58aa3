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
