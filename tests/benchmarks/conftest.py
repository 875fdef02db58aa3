"""Collects what benchmarks measure; prints one table at the end, writes it as JSON (BENCH_OUT, else build/) and as a
chart beside it."""

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

FIGURES = pytest.StashKey[list[dict[str, object]]]()

Record = Callable[..., None]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """`record(what, value, required=">= 15", **details)` adds a line to the table."""
    figures = request.config.stash.setdefault(FIGURES, [])

    def add(what: str, value: float, required: str, **details: object) -> None:
        figures.append({"what": what, "value": round(value, 4), "required": required} | details)
        write(figures)  # each time: a run that is ended before its end keeps what it measured

    return add


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder on a disk, not in memory, for caches and stores; removed afterwards."""
    made = Path("build") / f"bench-{os.getpid()}"
    made.mkdir(parents=True)
    yield made
    shutil.rmtree(made)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, [])
    if not figures:
        return
    terminalreporter.section("benchmarks")
    for figure in figures:
        details = ", ".join(f"{key} {value}" for key, value in list(figure.items())[3:])
        terminalreporter.line(f"{figure['what']:<58} {figure['value']!s:>10}   {figure['required']:<9} {details}")
    path = write(figures)
    terminalreporter.line(f"written to {path}: {machine()}")
    try:
        draw(figures, path.with_suffix(".png"))
    except ImportError as error:  # a bare machine: the figures are there, and so is what the tests said of them
        terminalreporter.line(f"no chart: {error}")


def write(figures: list[dict[str, object]]) -> Path:
    """The table so far, and where it is."""
    path = Path(os.environ.get("BENCH_OUT", "build/benchmarks.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "torch": torch.__version__, "figures": figures}
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def machine() -> dict[str, object]:
    """What the figures were measured on: no host, no paths."""
    processor, memory_gb = platform.machine(), 0
    if (cpu := Path("/proc/cpuinfo")).exists():
        lines = cpu.read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
        memory_gb = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    load = round(os.getloadavg()[0], 1)  # of others too: what ran beside a measurement must be seen
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": os.cpu_count(), "processor": processor, "memory_gb": memory_gb, "gpu": gpu, "load_at_end": load}


def draw(figures: list[dict[str, object]], path: Path) -> None:
    """A bar for each figure whose goal is a number: how many times its goal it reached, or kept within it."""
    from matplotlib.figure import Figure

    names, reached = [], []
    for figure in figures:
        sign, _, goal = str(figure["required"]).partition(" ")
        value = float(str(figure["value"]))
        if sign in (">=", "<=", "<") and float(goal) > 0 and value > 0:
            names.append(str(figure["what"]))
            reached.append(value / float(goal) if sign == ">=" else float(goal) / value)
    if not names:
        return
    chart = Figure(figsize=(10, 1 + 0.35 * len(names)), layout="constrained")
    axes = chart.subplots()
    axes.barh(names, reached, color=["tab:green" if value >= 1 else "tab:red" for value in reached])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("times the goal (right of the line: met)")
    chart.savefig(path, dpi=120)
