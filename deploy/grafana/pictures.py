"""Draws a board's panels from what Prometheus answers to their queries: `python -m deploy.grafana.pictures URL FOLDER`.

No picture of Grafana: the same questions and the same data, drawn by matplotlib, so that the documentation can show
what a board tells without a Grafana at hand.
"""

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from deploy.grafana.boards import BOARDS
from deploy.grafana.panels import Board, Panel
from worker.status import span

POINTS: Final = 240
GRID_WIDTH: Final = 24
PANEL_INCHES: Final = 2.4
WIDTH_INCHES: Final = 15.0
UNITS: Final = {"s": "s", "percentunit": "%", "none": "", "short": "", "bool_yes_no": ""}


def draw(board: Board, prometheus: str, minutes: float, file: Path) -> None:
    """One PNG of all panels of a board over the last minutes.

    Raises LookupError where a panel has no data.
    """
    lines = _lines(board)
    figure = plt.figure(figsize=(WIDTH_INCHES, PANEL_INCHES * len(lines) + 0.6), layout="constrained")
    figure.suptitle(f"{board.title} – panels drawn from Prometheus's answers, not by Grafana", fontsize=11)
    for part, line in zip(figure.subfigures(len(lines), 1, squeeze=False)[:, 0], lines, strict=True):
        grid = part.add_gridspec(1, len(line), width_ratios=[panel.width for _, panel in line])
        for cell, (title, panel) in zip(grid, line, strict=True):
            _draw_panel(part.add_subplot(cell), panel, title, prometheus, minutes)
    figure.savefig(file, dpi=70)
    plt.close(figure)


def _lines(board: Board) -> list[list[tuple[str, Panel]]]:
    """Rows and panels as Grafana breaks them into lines."""
    lines: list[list[tuple[str, Panel]]] = []
    for title, panels in board.rows:
        lines.append([])
        for panel in panels:
            if sum(other.width for _, other in lines[-1]) + panel.width > GRID_WIDTH:
                lines.append([])
            lines[-1].append((title, panel))
    return lines


def _draw_panel(axes: Axes, panel: Panel, row: str, prometheus: str, minutes: float) -> None:
    axes.set_title(f"{row}: {panel.title}", fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    found = [(legend, series) for query, legend in panel.queries for series in _series(query, prometheus, minutes)]
    if not found:
        raise LookupError(f"the panel {panel.title!r} has no data")
    scale = 100.0 if panel.unit == "percentunit" else 1.0
    if panel.kind in ("number", "bars"):
        _draw_last(axes, panel, found, scale)
        return
    named = [(_name(legend, series["metric"]), series["values"]) for legend, series in found]
    end = time.time()
    if panel.kind == "shares":
        shares = [[scale * float(value) for _, value in values] for _, values in named]
        times = [(float(at) - end) / 60 for at, _ in named[0][1]]
        shortest = min(map(len, shares))
        axes.stackplot(
            times[-shortest:], [s[-shortest:] for s in shares], labels=[name for name, _ in named], alpha=0.6
        )
    else:
        for name, values in named:
            axes.plot([(float(at) - end) / 60 for at, _ in values], [scale * float(v) for _, v in values], label=name)
        axes.set_ylim(bottom=0)
    axes.set_ylabel(UNITS[panel.unit], fontsize=7)
    axes.set_xlabel("minutes", fontsize=7)
    axes.legend(fontsize=6, loc="best")


def _draw_last(axes: Axes, panel: Panel, found: list[tuple[str, dict[str, Any]]], scale: float) -> None:
    last = [(_name(legend, series["metric"]), scale * float(series["values"][-1][1])) for legend, series in found]
    if panel.kind == "bars":
        axes.barh([name for name, _ in last], [value for _, value in last])
        axes.set_xlabel(UNITS[panel.unit], fontsize=7)
        return
    axes.axis("off")
    number = last[0][1]
    words = {"bool_yes_no": "yes" if number else "no", "s": span(number)}
    value = words.get(panel.unit, f"{number:,.3g}")
    axes.text(0.5, 0.5, value, ha="center", va="center", fontsize=20)


def _series(query: str, prometheus: str, minutes: float) -> list[dict[str, Any]]:
    end = time.time()
    step = max(0.5, 60 * minutes / POINTS)
    asked = urllib.parse.urlencode({"query": query, "start": end - 60 * minutes, "end": end, "step": step})
    # The address is the one that the person at the prompt gave.
    with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{asked}", timeout=30) as answer:  # noqa: S310
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def _name(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)


def main() -> None:
    """Draws every board."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prometheus", help="its address, such as http://127.0.0.1:9090")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=360)
    options = parser.parse_args()
    for board in BOARDS:
        draw(board, options.prometheus, options.minutes, options.folder / f"{board.uid}.png")


if __name__ == "__main__":
    main()
