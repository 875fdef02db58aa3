"""The whole service on one screen, for a person at night: what waits, who works, what needs somebody.

Figures go in, a drawing for a terminal comes out. Knows no Redis and no settings; what is wrong stands first and in
words, so that it also reads without colours.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from worker.errors import WeightsError
from worker.exporter import UNSAFE, Figures
from worker.model import files, pointer
from worker.model import history as histories
from worker.model.history import HistoryEntry
from worker.presence import WorkerInfo

# As the alerts of deploy/prometheus have it.
OLDEST_WAITING_S = {"uploads": 60.0, "backfill": 86_400.0}
AHEAD_S = 60.0
RETRYING = 500
MEMORY_SHARE = 0.8
# Where there is no terminal to ask, such as in a file or over a pipe.
WIDTH = 120


def draw(figures: Figures, promotion: HistoryEntry | str, now: datetime) -> Group:
    """The screen.

    Args:
        promotion: the last one in the weights store's history, or one sentence on why it is not known.
    """
    parts: list[RenderableType] = [_verdict_line(figures)]
    parts += [_streams(figures), _workers(figures.workers, now) if figures.workers else _no_worker(figures)]
    parts.append(_promotion_line(promotion, now))
    parts.append(Text(f"waiting for another attempt: {figures.retrying}   dead letters: {figures.dead_letters}"))
    parts.append(Text(f"memory of Redis: {_memory(figures)}"))
    parts.append(Text("circuit breaker: " + ("closed" if figures.breaker.opened_at is None else "OPEN")))
    return Group(*parts)


def last_promotion(weights: Path) -> HistoryEntry | str:
    """The last promotion or rollback that took effect; one sentence where none can be read on this machine."""
    try:
        with files.open_inside(weights, "history.jsonl") as file:
            history = histories.parse(file.read())
        champion = pointer.read(weights, "champion")
        # Without the file nobody can tell which took effect: it is lost, or the first promotion was cut short.
        entries = histories.in_effect(history, champion) if champion else histories.moves(history)
    except files.AbsentError:
        return f"no history in {weights}; set MODERATION_WEIGHTS_DIR to the weights store to see it"
    except WeightsError as error:
        return str(error)
    return entries[-1] if entries else "none yet"


def problems(figures: Figures) -> Iterator[str]:
    """What needs somebody, a sentence each."""
    breaker = figures.breaker
    if breaker.opened_at is not None:
        yield (
            f"The ban circuit breaker is open since {breaker.opened_at} and withholds {breaker.withheld} bans "
            f"({breaker.bans} of {breaker.decided} opened it): see `moderation breaker status`."
        )
    if figures.writes_refused:
        yield (
            f"Redis refuses writes ({figures.writes_refused}): nothing is enqueued or published, and workers wait. See "
            "ModerationRedisRefusesWrites in the runbook."
        )
    for reason in figures.unsafe:
        yield f"Redis may lose what it holds, for {UNSAFE[reason]}: see ModerationRedisUnsafe in the runbook."
    waiting = sum(stream.waiting for stream in figures.streams)
    if not figures.workers and not figures.writes_refused:
        yield f"No worker is alive and {waiting} content IDs wait: start one, see its log."
    for stream in figures.streams:
        if stream.oldest_waiting_s > OLDEST_WAITING_S[stream.stream]:
            yield f"The oldest of {stream.stream} has waited {span(stream.oldest_waiting_s)}: add workers, or see them."
        if stream.ahead_s > AHEAD_S:
            yield f"An entry of {stream.stream} is dated {span(stream.ahead_s)} ahead: a producer writes its own IDs."
    for name, ahead_s in figures.records_ahead_s.items():
        if ahead_s > AHEAD_S:
            yield f"An entry of {name} is dated {span(ahead_s)} ahead: see ModerationRecordDatedAhead in the runbook."
    if figures.retrying > RETRYING:
        yield f"{figures.retrying} pictures could not be fetched and wait for another attempt: see the content store."
    if figures.memory_bytes > MEMORY_SHARE * figures.memory_max_bytes > 0 and not figures.writes_refused:
        yield f"Redis uses {_memory(figures)}: see ModerationRedisMemoryShort in the runbook."
    if len({worker.weights for worker in figures.workers}) > 1:
        yield "Workers serve different weights versions: wait for a promotion to end, or see who refuses the champion."
    if figures.dead_letters:
        yield f"{figures.dead_letters} dead letters: see `moderation dead-letter list`."


def span(seconds: float) -> str:
    """A time span with its two largest units, as people say it."""
    whole = int(seconds)
    for unit, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {smaller_name}"
    return f"{seconds:.1f} s"


def _memory(figures: Figures) -> str:
    used, limit = (f"{size / 2**20:,.0f} MiB" for size in (figures.memory_bytes, figures.memory_max_bytes))
    return f"{used} of {limit if figures.memory_max_bytes else 'what there is: no limit is set'}"


def _verdict_line(figures: Figures) -> Text:
    found = list(problems(figures))
    if not found:
        return Text("All is well.", style="green")
    return Text("\n").join(Text(f"! {sentence}", style="bold red") for sentence in found)


def _streams(figures: Figures) -> Table:
    table = Table("stream", box=box.SIMPLE_HEAD)
    for name in ("waiting", "in work", "oldest waiting"):
        table.add_column(name, justify="right")
    for stream in figures.streams:
        oldest = span(stream.oldest_waiting_s) if stream.waiting else "–"
        table.add_row(stream.stream, f"{stream.waiting:,}", f"{stream.in_work:,}", oldest)
    return table


def _workers(workers: tuple[WorkerInfo, ...], now: datetime) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("worker", "release", "weights", "engine", "device", "since", "in work"):
        table.add_column(name, no_wrap=name in ("worker", "weights"))
    for worker in workers:
        since = now - datetime.fromtimestamp(worker.serving_since_ms / 1000, UTC)
        table.add_row(
            worker.node,
            worker.software,
            worker.weights,
            worker.engine,
            worker.device,
            span(since.total_seconds()) if worker.serving_since_ms else "",
            str(worker.in_work),
        )
    return table


def _no_worker(figures: Figures) -> Text:
    return Text("no worker is alive" if not figures.writes_refused else "workers cannot announce themselves")


def _promotion_line(promotion: HistoryEntry | str, now: datetime) -> Text:
    if isinstance(promotion, str):
        return Text(f"last promotion: {promotion}")
    ago = span(max(timedelta(), now - promotion.at).total_seconds())
    forced = ", against the gate" if promotion.forced else ""
    what = "rolled back" if promotion.action == "rollback" else "promoted"
    return Text(f"last promotion: {promotion.to} {what} {ago} ago by {promotion.by}{forced}: {promotion.why}")
