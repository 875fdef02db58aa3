"""What a scheduled run leaves for Prometheus: a text file for node_exporter's textfile collector, a Pushgateway push.

A run fills a `Record`; at its end, however that comes, `reported` writes it. Nothing here changes a run's result: a
file or gateway that cannot be written to is told in one sentence. Knows no training.
"""

import http.client
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway, write_to_textfile
from prometheus_client.parser import text_string_to_metric_families

from trainer.errors import LockedError, RefusedError
from trainer.results import RESULTS, Result
from worker.errors import UsageError

Outcome = Literal["promoted", "nothing_new", "refused", "failed"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
SUCCESSES: Final[frozenset[Outcome]] = frozenset({"promoted", "nothing_new"})
"""Those with exit code 0."""

LAST_SUCCESS: Final = "moderation_retrain_last_success_timestamp_seconds"
PUSH_JOB: Final = "moderation_retrain"
PUSH_TIMEOUT_S: Final = 10.0


@dataclass
class Record:
    """What a run has come to so far. `steps` are seconds by step, `pictures` decided ones by what became of them,
    `parts` usable files by part and label."""

    outcome: Outcome = "failed"
    steps: dict[str, float] = field(default_factory=dict)
    pictures: Counter[Result] = field(default_factory=Counter)
    parts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measures a step, also one that fails."""
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.steps[name] = time.monotonic() - started_s

    def registry(self, ended: float, last_success: float | None) -> CollectorRegistry:
        """The metrics; `ended` and `last_success`, None where none is known, are seconds since the epoch."""
        registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        gauge("moderation_retrain_last_run_timestamp_seconds", "When the last run ended.").set(ended)
        if last_success is not None:
            gauge(LAST_SUCCESS, "When the last run with exit code 0 ended.").set(last_success)
        outcome = gauge("moderation_retrain_outcome", "1 for what the last run came to.", "outcome")
        for one in OUTCOMES:
            outcome.labels(one).set(one == self.outcome)
        steps = gauge("moderation_retrain_step_seconds", "What each step of the last run took.", "step")
        for name, seconds in self.steps.items():
            steps.labels(name).set(seconds)
        pictures = gauge("moderation_retrain_pictures", "Decided pictures that the last run went through.", "result")
        for result in RESULTS:
            pictures.labels(result).set(self.pictures[result])
        parts = gauge("moderation_retrain_dataset_pictures", "Usable files of the data set.", "part", "label")
        for part, labels in self.parts.items():
            for label, count in labels.items():
                parts.labels(part, label).set(count)
        return registry


@contextmanager
def reported(file: Path | None, gateway: str | None, say: Callable[[str], None]) -> Iterator[Record]:
    """A record to fill; what it has come to is written to `file` and pushed to `gateway` when the block ends.

    Not where another run holds the lock: that one will report. Raises UsageError for a file or gateway that is none.
    """
    record = Record()
    try:
        _check(file, gateway)
        yield record
    except LockedError:
        raise
    except BaseException as error:
        record.outcome = "refused" if isinstance(error, RefusedError) else "failed"
        _report(record, file, gateway, say)
        raise
    _report(record, file, gateway, say)


def _check(file: Path | None, gateway: str | None) -> None:
    if file is not None and not file.parent.is_dir():
        raise UsageError(
            f"There is no folder {str(file.parent)!r} for --metrics-file: create it, or name another file."
        )
    if gateway is not None and not gateway.startswith(("http://", "https://")):
        raise UsageError("--pushgateway must start with http:// or https://, such as http://127.0.0.1:9091.")


def _report(record: Record, file: Path | None, gateway: str | None, say: Callable[[str], None]) -> None:
    now = time.time()
    success = now if record.outcome in SUCCESSES else None
    if file is not None and file.parent.is_dir():
        try:
            write_to_textfile(str(file), record.registry(now, success or _last_success(file)))
        except OSError as error:
            say(f"The metrics file {str(file)!r} cannot be written ({error.strerror or error}); the result stands.")
    if gateway is not None and urlsplit(gateway).scheme in ("http", "https"):
        try:
            # Adding keeps what this push does not have: the last success before a failure.
            pushadd_to_gateway(gateway, PUSH_JOB, record.registry(now, success), timeout=PUSH_TIMEOUT_S)
        except (OSError, http.client.HTTPException, ValueError) as error:
            where = urlsplit(gateway).hostname  # not the whole URL, which may hold a password
            say(f"The metrics could not be pushed to {where!r} ({type(error).__name__}); the result stands.")


def _last_success(file: Path) -> float | None:
    """As the file says that is about to be replaced; None where it does not."""
    try:
        families = list(text_string_to_metric_families(file.read_text()))
    except (OSError, ValueError):
        return None
    return next((sample.value for family in families for sample in family.samples if sample.name == LAST_SUCCESS), None)
