"""`moderation status`: what a person reads at night."""

import io
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from tests.support.worker import REPOSITORY
from worker import status
from worker.breaker import Status
from worker.exporter import FAMILIES, Figures, StreamFigures
from worker.model.history import HistoryEntry
from worker.presence import WorkerInfo

NOW = datetime(2026, 11, 24, 3, tzinfo=UTC)
PROMOTION = HistoryEntry.model_validate(
    {"at": NOW - timedelta(days=2, hours=5), "by": "ann", "action": "promote", "from": None, "to": "vgg11-3f9c0a71b2d4",
     "why": "the nightly run"}
)  # fmt: skip


def worker(node: str = "gpu0@ant", weights: str = "vgg11-3f9c0a71b2d4") -> WorkerInfo:
    since = int((NOW - timedelta(hours=3)).timestamp() * 1000)
    return WorkerInfo(node, weights, "cuda-bf16", 12, "NVIDIA L4", "0.1.0", since)


CLOSED, OPEN = Status(None, 0, 0, 0), Status("2026-11-24T02:58:00.000Z", 140, 600, 12)


def figures(
    *,
    oldest_s: float = 0.4,
    ahead_s: float = 0.0,
    dead: int = 0,
    breaker: Status = CLOSED,
    workers: tuple[WorkerInfo, ...],
) -> Figures:
    streams = (StreamFigures("uploads", 4321, 12, oldest_s, ahead_s), StreamFigures("backfill", 0, 0, 0.0, 0.0))
    return Figures(
        streams=streams,
        retrying=3,
        dead_letters=dead,
        breaker=breaker,
        workers=workers,
        memory_bytes=1 << 20,
        memory_max_bytes=0,
    )


def shown(found: Figures, promotion: HistoryEntry | str = PROMOTION, width: int = 120) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(status.draw(found, promotion, NOW))
    return file.getvalue()


def test_a_service_that_works_is_said_to_be_well_on_one_screen() -> None:
    text = shown(figures(workers=(worker(), worker("gpu1@ant"))))
    assert text.startswith("All is well.")
    for what in ("4,321", "gpu1@ant", "0.1.0", "vgg11-3f9c0a71b2d4", "cuda-bf16", "NVIDIA L4", "3 h 0 min"):
        assert what in text
    assert "promoted 2 d 5 h ago by ann: the nightly run" in text
    forced = PROMOTION.model_copy(update={"forced": True})
    assert "ago by ann, against the gate: the nightly run" in shown(figures(workers=(worker(),)), forced, 150)
    assert "dead letters: 0" in text and "circuit breaker: closed" in text and len(text.splitlines()) < 24


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (figures(workers=()), "No worker is alive and 4321 content IDs wait"),
        (figures(workers=(worker(),), oldest_s=3700), "The oldest of uploads has waited 1 h 1 min"),
        (figures(workers=(worker(),), ahead_s=90_000), "dated 1 d 1 h ahead"),
        (replace(figures(workers=(worker(),)), records_ahead_s={"verdicts": 90_000.0}), "verdicts is dated 1 d 1 h"),
        (figures(workers=(worker(), worker(weights="vgg11-000000000000"))), "different weights versions"),
        (figures(workers=(worker(),), breaker=OPEN), "withholds 12 bans (140 of 600 opened it)"),
        (replace(figures(workers=(worker(),)), retrying=501), "501 pictures could not be fetched"),
        (
            replace(figures(workers=(worker(),)), memory_bytes=3800 << 20, memory_max_bytes=4 << 30),
            "Redis uses 3,800 MiB of 4,096 MiB",
        ),
        (
            replace(figures(workers=()), writes_refused="its memory limit is reached"),
            "Redis refuses writes (its memory",
        ),
        (figures(workers=(worker(),), dead=2), "2 dead letters: see `moderation dead-letter list`"),
    ],
)
def test_what_needs_somebody_stands_first(found: Figures, sentence: str) -> None:
    text = shown(found)
    assert text.startswith("! ") and "All is well" not in text
    assert sentence in text.partition("stream")[0]


AT_WORK = figures(workers=(worker(),))
PAGES: dict[str, tuple[Figures, Figures]] = {
    "ModerationNoWorker": (AT_WORK, figures(workers=())),
    "ModerationUploadsWaitTooLong": (
        figures(workers=(worker(),), oldest_s=60.0),
        figures(workers=(worker(),), oldest_s=60.1),
    ),
    "ModerationRetriesPileUp": (replace(AT_WORK, retrying=500), replace(AT_WORK, retrying=501)),
    "ModerationRecordDatedAhead": (
        replace(AT_WORK, records_ahead_s={"verdicts": 60.0}),
        replace(AT_WORK, records_ahead_s={"verdicts": 60.1}),
    ),
    "ModerationRedisMemoryShort": (
        replace(AT_WORK, memory_bytes=800, memory_max_bytes=1000),
        replace(AT_WORK, memory_bytes=801, memory_max_bytes=1000),
    ),
    "ModerationRedisRefusesWrites": (AT_WORK, replace(AT_WORK, writes_refused="its memory limit is reached")),
    "ModerationCircuitBreakerOpen": (AT_WORK, figures(workers=(worker(),), breaker=OPEN)),
}
"""By page: figures at its threshold, and beyond."""


def test_all_is_not_well_while_a_page_fires() -> None:
    """Every page that rests on nothing but the exporter's figures, at its own threshold."""
    rules = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "rules" / "alerts.yml").read_text())
    asked = {
        rule["alert"]: set(re.findall(r"\bmoderation[a-z0-9_:]+", rule["expr"]))
        for group in rules["groups"]
        for rule in group["rules"]
        if rule["labels"]["severity"] == "page"
    }
    assert PAGES.keys() == {alert for alert, names in asked.items() if names and names <= FAMILIES.keys()}
    for alert, (quiet, beyond) in PAGES.items():
        assert not list(status.problems(quiet)), alert
        assert list(status.problems(beyond)), alert


def test_memory_is_shown() -> None:
    assert "memory of Redis: 1 MiB of what there is: no limit is set" in shown(AT_WORK)
    assert "memory of Redis: 1 MiB of 4,096 MiB" in shown(replace(AT_WORK, memory_max_bytes=4 << 30))


def test_a_machine_without_the_weights_store_says_so(tmp_path: Path) -> None:
    said = status.last_promotion(tmp_path)
    assert isinstance(said, str) and "MODERATION_WEIGHTS_DIR" in said
    (tmp_path / "history.jsonl").write_text("{}\n")
    assert "line 1 of history.jsonl is damaged" in str(status.last_promotion(tmp_path))
    (tmp_path / "history.jsonl").write_bytes(PROMOTION.to_json() + b"\n")
    assert status.last_promotion(tmp_path) == PROMOTION, "though the file champion is lost"


def test_a_promotion_that_a_crash_cut_short_is_not_shown(tmp_path: Path) -> None:
    """It stands in the history before it takes effect: the one that serves is the last before it."""
    cut_short = PROMOTION.model_copy(update={"from_": PROMOTION.to, "to": "vgg11-000000000000"})
    (tmp_path / "history.jsonl").write_bytes(PROMOTION.to_json() + b"\n" + cut_short.to_json() + b"\n")
    (tmp_path / "champion").write_text(f"{PROMOTION.to}\n")
    assert status.last_promotion(tmp_path) == PROMOTION


def test_it_reads_on_a_narrow_terminal() -> None:
    assert all(len(line) <= 80 for line in shown(figures(workers=(worker(),)), width=80).splitlines())
