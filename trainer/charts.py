"""Figures in, drawings out: SVG files as text. Knows shapes and colours, not what a figure means.

Text stays text, so that a drawing is sharp at any size and a few KB long. What is drawn
is numbers and the labels' names, which need no escaping; nothing of a file's name or a person's words comes here.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS: Final = {"approved": "#2f7d5b", "not_suitable": "#b07d1a", "risked": "#b4413c"}
"""A colour a label: dark enough for text on white, told apart by people who see no red or green by their lightness."""

INK: Final = "#4a5560"
LINE: Final = "#d5dade"
ACCENT: Final = "#2c5f8a"

_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moderation-trainer",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#eef1f3",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
_WIDTH_IN: Final = 4.6
_HEIGHT_IN: Final = 3.4


@contextmanager
def _drawing(into: list[str]) -> Iterator[Axes]:
    """Axes to draw on; the finished SVG is put into `into`."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
        yield figure.add_subplot()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    into.append(buffer.getvalue())


def _legend_above(axes: Axes) -> None:
    """Above the axes: inside them, it could cover a curve."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8.5, handlelength=1.1, columnspacing=1)


def confusion(table: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """A grid of counts [true][called], shaded by the share of its row."""
    made: list[str] = []
    with _drawing(made) as axes:
        shares = [[count / max(1, sum(row)) for count in row] for row in table]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
        for i, row in enumerate(table):
            for j, count in enumerate(row):
                colour = "white" if shares[i][j] > 0.62 else INK
                axes.text(j, i, f"{count}\n{shares[i][j]:.0%}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_yticks(range(len(labels)), labels, rotation=90, va="center")
        axes.set(xlabel="called", ylabel="true label")
        axes.grid(visible=False)
        axes.tick_params(length=0)
    return made[0]


def precision_recall(curves: Mapping[str, Any]) -> str:
    """Precision over recall for each label, the share of the label as a dotted line."""
    made: list[str] = []
    with _drawing(made) as axes:
        for name, curve in curves.items():
            x, y = zip(*curve["precision_recall"], strict=True)
            area = f"{name} {curve['average_precision']:.2f}"
            axes.plot(x, y, color=COLOURS[name], label=area, drawstyle="steps-post")
            axes.axhline(curve["share"], color=COLOURS[name], linewidth=0.8, linestyle=":")
        axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        _legend_above(axes)
    return made[0]


def roc(curves: Mapping[str, Any]) -> str:
    """Hits over false alarms for each label."""
    made: list[str] = []
    with _drawing(made) as axes:
        axes.plot((0, 1), (0, 1), color=LINE, linewidth=1)
        for name, curve in curves.items():
            x, y = zip(*curve["roc"], strict=True)
            axes.plot(x, y, color=COLOURS[name], label=f"{name} {curve['roc_area']:.2f}")
        axes.set(xlim=(-0.01, 1), ylim=(0, 1.02), xlabel="false alarms, share of the others", ylabel="found")
        _legend_above(axes)
    return made[0]


def reliability(rows: Sequence[Mapping[str, Any]]) -> str:
    """The share that is right over confidence; a dot's size is its number of pictures."""
    made: list[str] = []
    with _drawing(made) as axes:
        axes.plot((0, 1), (0, 1), color=LINE, linewidth=1)
        most = max((row["pictures"] for row in rows), default=1)
        axes.plot([row["confidence"] for row in rows], [row["right"] for row in rows], color=ACCENT, linewidth=1)
        axes.scatter(
            [row["confidence"] for row in rows],
            [row["right"] for row in rows],
            s=[20 + 160 * row["pictures"] / most for row in rows],
            color=ACCENT,
            zorder=3,
            clip_on=False,
        )
        for row in rows:
            axes.annotate(str(row["pictures"]), (row["confidence"], row["right"]), (-3, 9), textcoords="offset points")
        axes.set(xlim=(0, 1), ylim=(0, 1.12), xlabel="confidence", ylabel="share right")
    return made[0]


def epochs(curve: Sequence[Mapping[str, float]], best: int) -> str:
    """Training loss and validation accuracy by epoch; the one that was kept is marked."""
    made: list[str] = []
    with _drawing(made) as axes:
        x = range(1, len(curve) + 1)
        axes.plot(x, [row["validation_accuracy"] for row in curve], color=ACCENT, marker="o", markersize=3)
        axes.axvline(best, color=LINE, linestyle="--", linewidth=1)
        axes.set(xlabel=f"epoch (kept: {best})", ylabel="accuracy on the test pictures")
        axes.yaxis.label.set_color(ACCENT)
        losses = axes.twinx()
        losses.plot(x, [row["train_loss"] for row in curve], color=COLOURS["not_suitable"], marker="s", markersize=3)
        losses.set_ylabel("training loss", color=COLOURS["not_suitable"])
        losses.grid(visible=False)
    return made[0]


def cross_validation(tried: Mapping[str, Mapping[str, float]], chosen: str) -> str:
    """Log loss and accuracy of each setting that was tried; the chosen one is marked."""
    made: list[str] = []
    with _drawing(made) as axes:
        names = list(tried)
        axes.plot(names, [tried[name]["log_loss"] for name in names], color=ACCENT, marker="o", markersize=4)
        if chosen in names:
            axes.axvline(names.index(chosen), color=LINE, linestyle="--", linewidth=1)
        axes.set(xlabel=f"inverse strength of the penalty, C (chosen: {chosen})", ylabel="log loss")
        axes.yaxis.label.set_color(ACCENT)
        axes.tick_params(axis="x", labelrotation=45 if len(names) > 5 else 0)
        hits = axes.twinx()
        accuracies = [tried[name]["accuracy"] for name in names]
        hits.plot(names, accuracies, color=COLOURS["not_suitable"], marker="s", markersize=4)
        hits.set_ylabel("accuracy", color=COLOURS["not_suitable"])
        hits.grid(visible=False)
    return made[0]


def scatter(points: Sequence[Sequence[float]], clusters: Sequence[int], names: Mapping[int, str]) -> str:
    """Points [n][2] as dots in their cluster's colour, grey where it has no name; each name at its cluster's median."""
    made: list[str] = []
    with _drawing(made) as axes:
        colours = [f"C{cluster % 10}" if cluster in names else LINE for cluster in clusters]
        axes.scatter([x for x, _ in points], [y for _, y in points], s=7, c=colours, alpha=0.7, linewidths=0)
        for cluster, name in names.items():
            members = [point for point, at in zip(points, clusters, strict=True) if at == cluster]
            x, y = median(x for x, _ in members), median(y for _, y in members)
            axes.text(x, y, name, fontsize=7.5, ha="center", in_layout=False)
        axes.set_axis_off()
    return made[0]
