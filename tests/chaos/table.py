"""The kept figures of all long runs as Markdown. Figures go in, text comes out; knows no runs and keeps nothing."""

import os
import platform
from pathlib import Path
from typing import Any

HEAD = """\
# Chaos: what was attacked, and what came of it

Made by `make chaos` (tests/chaos/test_chaos.py); do not edit. Real Valkey with the settings of deploy/redis/redis.conf
(but `appendfsync always` where the server itself is killed: with the shipped `everysec` it may take its last second
along, which a worker that is killed cannot), real
`celery worker` processes (forked from one that has imported torch, for time's sake), a network of 400 parameters so
that the queue and not the device is busy, a third of the pictures banned. What was submitted and what came out was
written down apart from the service, on connections of their own, and every model's verdict was computed a second time,
from its picture and the version that it names.
"""

OTHER_FINDINGS = """\
Other findings would be: a verdict that its picture and version do not give, a healthy picture undecided or among the
dead letters, a decision of a person that does not stand, one that does not hold for the same bytes under another ID
from the moment on that it is in force, an ID that nobody submitted, anything left in the intake, a key without a TTL, a
stream that differs from what was read of it while it grew, a worker that ended by itself. A swap counts once a verdict
by the new champion was seen. A person who confirms a ban makes a verdict of their own; that is no second ban. Claims
left by the dead are what each worker that was killed still had in its list when it was found dead, for others to take
over.
"""

RESUMED = """\
The server is back when it answers, not while it loads its append-only file. "Judged" is held to the limit: a model's
verdict on what was submitted after the server's return, which has been through the whole line, behind all that waited.
The first verdict of any model may have been in hand before. A message by name is taken up when a worker's task has put
its ID into the intake. Celery comes back later than those who pull: it tries the server again after pauses of 2, 4, 6 …
seconds, and gives up half-open connections after 11 and 5 seconds.
"""


def markdown(parts: dict[str, Any], beside: dict[str, Any]) -> str:
    """All parts, and what is kept beside them."""
    attacked = {name: part for name, part in parts.items() if "control" not in part}
    return "\n".join(
        [HEAD, *_runs(parts), "", *_totals(attacked), "", *_attacks(attacked), "", *_resumptions(attacked), "",
         *_by_name(attacked), "", *_control(parts), "", *_beside(beside)]
    ).rstrip() + "\n"  # fmt: skip


def kills(attack: str) -> bool:
    """Whether an attack of that name is the death of a worker."""
    return attack.startswith(("SIGKILL of a worker", "killed at: ")) and "producer" not in attack


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _header(*cells: str) -> list[str]:
    return [_row(*cells), f"|{' --- |' * len(cells)}"]


def _runs(parts: dict[str, Any]) -> list[str]:
    system = f"{platform.system()}, Python {platform.python_version()}"
    rows = [f"Run on {_processor()}, {os.cpu_count()} cores, {system}.", ""]
    rows += _header("part", "ended", "seed", "commit", "appendfsync")
    rows += [_row(name, *(p[key] for key in ("date", "seed", "commit", "appendfsync"))) for name, p in parts.items()]
    commits = {part["commit"] for part in parts.values()}
    if len(commits) > 1:
        rows += ["", f"**The parts ran at {len(commits)} different commits**: their sums are of no single one."]
    if any("changes" in commit for commit in commits):
        rows += ["", "**+changes**: something was changed in the working tree and not committed."]
    return rows


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _totals(parts: dict[str, Any]) -> list[str]:
    columns = {
        "seconds": "seconds", "effective verdicts": "verdicts", "bans": "bans", "submitted again": "again",
        "rescans": "rescans", "pictures that came late": "late", "people's decisions": "corrections",
        "copies by decisions on their bytes": "known_copies", "copies judged before": "copies_judged_before",
        "rescans of other bytes": "rewritten",
        "champion swaps": "swaps", "claims left by the dead": "orphaned",
        "entries delivered to nobody (half-open), at least": "into_the_void", "**lost**": "lost",
        "**two effective verdicts**": "twice", "**banned twice**": "banned_twice", "**other findings**": "other",
    }  # fmt: skip
    rows = _header("part", *columns)
    rows += [_row(name, *(f"{part[key]:,}" for key in columns.values())) for name, part in parts.items()]
    sums = [f"{sum(part[key] for part in parts.values()):,}" for key in columns.values()]
    return [*rows, _row("**all**", *sums), "", OTHER_FINDINGS]


def _attacks(parts: dict[str, Any]) -> list[str]:
    rows = _header("attack", *parts, "all")
    deaths = 0
    for name in sorted({name for part in parts.values() for name in part["attacks"]}):
        counts = [part["attacks"].get(name, 0) for part in parts.values()]
        deaths += sum(counts) * kills(name)
        rows.append(_row(name, *(count or "" for count in counts), sum(counts)))
    return [*rows, _row("**SIGKILLs of workers**", *("" for _ in parts), f"**{deaths}**")]


def _resumptions(parts: dict[str, Any]) -> list[str]:
    rows = _header(
        "the server", "away, s", "then loading, s", "first verdict after its return, s",
        "judged what was submitted after it, s (limit)",
        "message by name taken up, s (limit)",
    )  # fmt: skip
    for part in parts.values():
        for seen in part["resumed"]:
            judged, by_name = (f"{seen[key]:.1f} ({seen[f'{key}_limit']:g})" for key in ("judged_s", "by_name_s"))
            loading = f"{seen['loading_s']:.1f}" if seen["loading_s"] else ""
            away = f"{seen['outage_s']:g}"
            rows.append(_row(seen["what"], away, loading, f"{seen['published_s']:.1f}", judged, by_name))
    return [*rows, "", RESUMED]


def _by_name(parts: dict[str, Any]) -> list[str]:
    messages, sent, lost = (
        sum(part[key] for part in parts.values()) for key in ("messages", "sent_by_name", "lost_by_name")
    )
    return [
        f"Counted apart: {messages:,} messages sent by name (`moderation.moderate`) with {sent:,} IDs, of which "
        f"**{lost:,}** never got a verdict. Until a worker has received it, a message is as safe as Celery on Redis is."
    ]


def _control(parts: dict[str, Any]) -> list[str]:
    return [
        f"Positive control, the same run with the take-over switched off: after {sum(part['attacks'].values())} kills "
        f"**{part['control']:,}** IDs had no verdict, and the checks said so. They were exactly those that XPENDING "
        f"shows in the lists of the dead ({part['stranded']:,} entries; the others ask again for what has a verdict). "
        f"An ordinary worker, started then, judged them, and {part['lost']} were lost."
        for part in parts.values()
        if "control" in part
    ]


def _beside(beside: dict[str, Any]) -> list[str]:
    if not beside:
        return []
    rows = ["## Hostile pictures, and memory", "", *_header("what", "command", "seed", "ended", "commit", "result")]
    for kept in beside.values():
        seed = "–" if kept["seed"] is None else kept["seed"]
        rows.append(_row(kept["what"], f"`{kept['command']}`", seed, kept["date"], kept["commit"], kept["result"]))
    return rows
