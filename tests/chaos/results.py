"""What a long run showed, kept as a table: a JSON file a part in build/chaos, and RESULTS.md made of all of them.

Parts may be run one by one; the table says when each of them was.
"""

import json
import os
import platform
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.chaos.checks import Findings
from tests.chaos.driver import Driver
from tests.support.worker import REPOSITORY

PARTS = REPOSITORY / "build" / "chaos"
TABLE = Path(__file__).with_name("RESULTS.md")

HEAD = """\
# Chaos: what was attacked, and what came of it

Made by `make chaos` (tests/chaos/test_chaos.py); do not edit. Real Valkey with its append-only file
(`appendfsync always`: with `everysec` a server that dies may take its last second along), real
`celery worker` processes (forked from one that has imported torch, for time's sake), a network of 400 parameters so
that the queue and not the device is busy, a third of the pictures banned. What was submitted and what came out was
written down apart from the service, on connections of their own, and every model's verdict was computed a second time,
from its picture and the version that it names.
"""

OTHER_FINDINGS = """\
Other findings would be: a verdict that its picture and version do not give, a healthy picture undecided or among the
dead letters, a decision of a person that does not stand, an ID that nobody submitted, anything left in the intake, a
key without a TTL, a stream that differs from what was read of it while it grew. A swap counts once a verdict by the new
champion was seen. A person who confirms a ban makes a verdict of their own; that is no second ban.
"""


def keep(part: str, driver: Driver, findings: Findings, **more: Any) -> None:
    """Writes the part's figures, whatever they are, and the table anew."""
    PARTS.mkdir(parents=True, exist_ok=True)
    figures = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seed": driver.seed,
        "seconds": round(driver.took_s),
        "verdicts": findings.verdicts,
        "bans": findings.bans,
        "lost": len(findings.lost),
        "twice": len(findings.twice),
        "banned_twice": len(findings.banned_twice),
        "other": len(findings.other),
        "again": driver.feeder.again,
        "rescans": driver.feeder.rescans,
        "late": driver.feeder.late,
        "corrections": sum(map(len, driver.moderator.decided.values())),
        "rewritten": driver.rewriter.rewritten,
        "swaps": driver.swapper.swaps,
        "orphaned": driver.orphaned,
        "messages": driver.celery.messages,
        "sent_by_name": len(driver.celery.sent),
        "lost_by_name": driver.celery_lost(),
        "attacks": dict(sorted(driver.tally.items())),
        "resumed": driver.resumed,
        **more,
    }
    (PARTS / f"{part}.json").write_text(json.dumps(figures, indent=1))
    TABLE.write_text(table())


def totals() -> dict[str, int]:
    """Over all parts but the control: workers killed, servers restarted, champions swapped, and IDs lost or doubled."""
    _, attacked = _parts()
    attacks = Counter[str]()
    for part in attacked.values():
        attacks.update(part["attacks"])
    counted = {key: sum(part[key] for part in attacked.values()) for key in ("swaps", "lost", "twice")}
    restarts = sum(count for name, count in attacks.items() if name.endswith("of the server, restart"))
    return {"kills": sum(count for name, count in attacks.items() if _kills(name)), "restarts": restarts, **counted}


def _parts() -> tuple[dict[str, Any], dict[str, Any]]:
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(PARTS.glob("*.json"))}
    return parts, {name: part for name, part in parts.items() if "control" not in part}


def _kills(attack: str) -> bool:
    return attack.startswith(("SIGKILL of a worker", "killed at: ")) and "producer" not in attack


def table() -> str:
    """All parts as Markdown."""
    parts, attacked = _parts()
    return "\n".join(
        [HEAD, _machine(parts), "", *_totals(attacked), "", *_attacks(attacked), "", *_resumptions(attacked), "",
         *_by_name(attacked), "", *_control(parts)]
    ) + "\n"  # fmt: skip


def _machine(parts: dict[str, Any]) -> str:
    when = ", ".join(f"{name} {part['date']} (seed {part['seed']})" for name, part in parts.items())
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"Run on {_processor()}, {os.cpu_count()} cores, {system}: {when}."


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
        "rescans of other bytes": "rewritten",
        "champion swaps": "swaps", "claims left by the dead": "orphaned", "**lost**": "lost",
        "**two effective verdicts**": "twice", "**banned twice**": "banned_twice", "**other findings**": "other",
    }  # fmt: skip
    rows = [f"| {' | '.join(['part', *columns])} |", f"|{' --- |' * (len(columns) + 1)}"]
    for name, part in parts.items():
        rows.append(f"| {' | '.join([name, *(f'{part[key]:,}' for key in columns.values())])} |")
    sums = [f"{sum(part[key] for part in parts.values()):,}" for key in columns.values()]
    return [*rows, f"| **all** | {' | '.join(sums)} |", "", OTHER_FINDINGS]


def _attacks(parts: dict[str, Any]) -> list[str]:
    rows = ["| attack | " + " | ".join(parts) + " | all |", f"|{' --- |' * (len(parts) + 2)}"]
    names = sorted({name for part in parts.values() for name in part["attacks"]})
    kills = 0
    for name in names:
        counts = [part["attacks"].get(name, 0) for part in parts.values()]
        kills += sum(counts) * _kills(name)
        rows.append(f"| {name} | {' | '.join(str(count or '') for count in counts)} | {sum(counts)} |")
    return [*rows, f"| **SIGKILLs of workers** | {'| ' * len(parts)}**{kills}** |"]


def _resumptions(parts: dict[str, Any]) -> list[str]:
    rows = [
        "| the server | away, s | first verdict after its return, s | a Celery message sent then has its verdict, s |",
        "| --- | --- | --- | --- |",
    ]
    for part in parts.values():
        for what, outage_s, resumed_s, by_name_s in part["resumed"]:
            by_name = "" if by_name_s is None else f"{by_name_s:.1f}"
            rows.append(f"| {what} | {outage_s:g} | {resumed_s:.1f} | {by_name} |")
    return rows


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
        f"**{part['control']:,}** IDs had no verdict, and the checks said so; an ordinary worker, started then, judged "
        f"them, and {part['lost']} were lost."
        for part in parts.values()
        if "control" in part
    ]
