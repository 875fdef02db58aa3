"""What a long run showed, kept: a JSON file a part in build/chaos, and RESULTS.md made of all of them (see `table`).

Parts may be run one by one; each is kept with the commit that it ran at. A part that begins forgets what it showed
before, so that one that does not reach its end leaves no figures of another day.
"""

import json
import subprocess
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.chaos import table
from tests.chaos.checks import Findings
from tests.chaos.driver import Driver
from tests.support.worker import REPOSITORY

PARTS = REPOSITORY / "build" / "chaos"
BESIDE = PARTS / "beside"
TABLE = Path(__file__).with_name("RESULTS.md")
PARTIAL = PARTS / "RESULTS.md"
WHOLE = {"control", "crash points", "processes", "server"}
"""Without these the table stays in build/chaos and does not take the place of a whole one."""

_began: dict[str, str] = {}


def begin(part: str) -> None:
    """Forgets what the part showed before."""
    for folder in (PARTS, BESIDE):
        (folder / f"{part}.json").unlink(missing_ok=True)
    _began[part] = commit()


def keep(part: str, driver: Driver, findings: Findings, **more: Any) -> None:
    """Writes the part's figures, whatever they are, and the table anew."""
    figures = {
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
        "known_copies": findings.known_copies,
        "copies_judged_before": findings.copies_judged_before,
        "rewritten": driver.rewriter.rewritten,
        "swaps": driver.swapper.swaps,
        "orphaned": driver.orphaned,
        "into_the_void": driver.into_the_void,
        "messages": driver.celery.messages,
        "sent_by_name": len(driver.celery.sent),
        "lost_by_name": driver.celery_lost(),
        "appendfsync": driver.raw.config_get("appendfsync")["appendfsync"],
        "attacks": dict(sorted(driver.tally.items())),
        "resumed": [asdict(resumption) for resumption in driver.resumed],
        **more,
    }
    _write(PARTS, part, figures)


def keep_beside(name: str, *, what: str, command: str, result: str, seed: int | None = None) -> None:
    """Keeps the figures of a long test that is no chaos run, with the command that makes them, and the table anew."""
    _write(BESIDE, name, {"what": what, "command": command, "seed": seed, "result": result})


def totals() -> dict[str, int]:
    """Over all parts but the control: workers killed, servers restarted, champions swapped, and IDs lost or doubled."""
    attacked = {name: part for name, part in _read(PARTS).items() if "control" not in part}
    attacks = Counter[str]()
    for part in attacked.values():
        attacks.update(part["attacks"])
    counted = {key: sum(part[key] for part in attacked.values()) for key in ("swaps", "lost", "twice")}
    restarts = sum(count for name, count in attacks.items() if name.endswith("of the server, restart"))
    return {
        "kills": sum(count for name, count in attacks.items() if table.kills(name)),
        "restarts": restarts,
        **counted,
    }


def commits() -> set[str]:
    """Those that the parts ran at."""
    return {part["commit"] for part in _read(PARTS).values()}


def commit() -> str:
    """What is checked out here: a short hash, and whether there is anything beside it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", ".", f":(exclude){TABLE.relative_to(REPOSITORY)}")
        return git("rev-parse", "--short", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _write(folder: Path, name: str, figures: dict[str, Any]) -> None:
    now = commit()
    before = _began.get(name, now)
    said = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": now if now == before else f"{before} to {now}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(said | figures, indent=1))
    parts = _read(PARTS)
    text = table.markdown(parts, _read(BESIDE))
    PARTIAL.write_text(text)
    if parts.keys() >= WHOLE:
        TABLE.write_text(text)


def _read(folder: Path) -> dict[str, Any]:
    kept = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: figures for name, figures in kept.items() if "commit" in figures}  # else of an older suite
