"""All metrics of a worker process, a sentence each, in base units. Knows nothing but names and numbers."""

import itertools

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worker.errors import UNDECIDED_REASONS
from worker.model.reference import PROBABILITY_EDGES, Reference
from worker.verdict import Undecided, Verdict

STAGES = ("fetch", "decode", "wait", "forward", "publish")
RESTART_CAUSES = ("timeout", "crash", "killed")
LOAD_OUTCOMES = ("loaded", "refused")
# (label, ban, review) as verdicts have them.
VERDICT_KINDS = (
    *itertools.product(("approved", "not_suitable"), ("0",), ("0", "1")), ("risked", "0", "1"), ("risked", "1", "0"),
)  # fmt: skip
# From a GPU's few milliseconds to a backlog's hours.
LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """One process, one registry. Series whose labels are known in advance exist from the start, at 0."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.verdicts = Counter(
            "moderation_verdicts",
            "Decided verdicts that took effect.",
            ["label", "ban", "review", "weights"],
            registry=self.registry,
        )
        self.decisions = Counter(
            "moderation_decisions",
            "What versions decided: also in rescans that agreed, and bans that the circuit breaker withheld.",
            ["label", "ban", "weights"],
            registry=self.registry,
        )
        self.undecided = Counter(
            "moderation_undecided", "Undecided outcomes that took effect.", ["reason"], registry=self.registry
        )
        self.latency = Histogram(
            "moderation_enqueue_to_verdict_seconds", "From enqueuing to the verdict, on Redis's clock.",
            buckets=LATENCY_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.upload_latency = Histogram(
            "moderation_upload_to_verdict_seconds",
            "From enqueuing to the verdict, of uploads only: backfill may wait for days.",
            buckets=LATENCY_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.stage = Histogram(
            "moderation_stage_seconds", "Seconds a picture (forward, publish: a batch) spent in a stage.", ["stage"],
            buckets=STAGE_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.batch = Histogram(
            "moderation_batch_images", "Images in a forward pass.", buckets=BATCH_BUCKETS, registry=self.registry
        )
        self.risk = Histogram(
            "moderation_risked_probability",
            "p(risked) of what versions decided.",
            buckets=PROBABILITY_EDGES,
            registry=self.registry,
        )
        self.weights = Gauge(
            "moderation_weights_info",
            "1 for the version in service.",
            ["role", "weights", "engine"],
            registry=self.registry,
        )
        self.loads = Counter(
            "moderation_weights_loads", "Attempts to take up a version.", ["outcome"], registry=self.registry
        )
        self.engine_fallbacks = Counter(
            "moderation_engine_fallbacks",
            "Faster engines that were not taken into service, or not yet.",
            ["engine", "reason"],
            registry=self.registry,
        )
        self.champion_refused = Gauge(
            "moderation_champion_refused",
            "1 while the store's champion cannot be served and another version is.",
            registry=self.registry,
        )
        self.duplicates = Counter(
            "moderation_duplicates", "Entries that left because a verdict stood already.", registry=self.registry
        )
        self.unchanged = Counter(
            "moderation_unchanged", "Rescans that agreed with the verdict that stands.", registry=self.registry
        )
        self.reclaimed = Counter(
            "moderation_reclaimed", "Claims taken over from a process that went away.", registry=self.registry
        )
        self.restarts = Counter(
            "moderation_decoder_restarts", "Decoder processes ended, by cause.", ["cause"], registry=self.registry
        )
        self.reference_labels = Gauge(
            "moderation_reference_label_share",
            "Share of each label that the version in service was expected to decide.",
            ["weights", "label"],
            registry=self.registry,
        )
        self.reference_risk = Gauge(
            "moderation_reference_risked_probability",
            "Share of pictures that the version in service was expected to give a p(risked) of at most `le`.",
            ["weights", "le"],
            registry=self.registry,
        )
        for reason in UNDECIDED_REASONS:
            self.undecided.labels(reason)
        for stage in STAGES:
            self.stage.labels(stage)
        for outcome in LOAD_OUTCOMES:
            self.loads.labels(outcome)
        for cause in RESTART_CAUSES:
            self.restarts.labels(cause)

    def published(self, document: Verdict | Undecided, latency_s: float, *, backfill: bool) -> None:
        """Counts a verdict that took effect."""
        self.latency.observe(max(0.0, latency_s))
        if not backfill:
            self.upload_latency.observe(max(0.0, latency_s))
        if isinstance(document, Undecided):
            for reason in document.reasons:
                self.undecided.labels(reason).inc()
            return
        flags = (str(int(document.ban)), str(int(document.review)))
        self.verdicts.labels(document.label, *flags, document.weights or "").inc()

    def judged(self, verdict: Verdict) -> None:
        """Counts what a version decided, whether or not it changed anything."""
        self.decisions.labels(verdict.label, str(int(verdict.ban)), verdict.weights or "").inc()
        if verdict.probabilities is not None:
            self.risk.observe(verdict.probabilities.risked)

    def serving(self, weights: str, engine: str, reference: Reference | None) -> None:
        """Names the version in service, and no other, and what was expected of it where its manifest says so."""
        self.loads.labels("loaded").inc()
        self.engine(weights, engine)
        for label, ban, review in VERDICT_KINDS:  # at 0: a series that begins with its first shows no increase
            self.verdicts.labels(label, ban, review, weights)
            self.decisions.labels(label, ban, weights)
        self.reference_labels.clear()
        self.reference_risk.clear()
        if reference is not None:
            for label, share in reference.label_shares.items():
                self.reference_labels.labels(weights, label).set(share)
            for edge, share in reference.risked_at_most.items():
                self.reference_risk.labels(weights, str(edge)).set(share)

    def engine(self, weights: str, engine: str) -> None:
        """Names the version and the engine in service, and no other."""
        self.weights.clear()
        self.weights.labels("champion", weights, engine).set(1)
