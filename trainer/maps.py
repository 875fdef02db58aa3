"""Shapley maps in, pictures out: a PNG for the command, small panels for a report. Red for a label, blue against it.

A map lies over the picture in pale grey; each cell stays a square, as wide as the layer sees. The two maps of a row
share a scale, so that their colours can be compared; rows do not, because an untrained layer's logits are small.
"""

import io
import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from trainer.arrays import FloatArray, Frames
from trainer.charts import INK
from trainer.explain import Explained, Row
from trainer.gallery import thumbnail
from trainer.report import Panel, Tile
from trainer.shapley import Map
from worker.model.labels import LABELS

RED: Final = (200, 32, 60)
BLUE: Final = (24, 100, 190)
PALE: Final = 0.3
"""How much of the grey picture's contrast is left below a map."""

CELL_INCHES: Final = 2.5
ROW_INCHES: Final = 0.72
NOTE_INCHES: Final = 0.6
DPI: Final = 110
NAME_CHARACTERS: Final = 48


def overlay(frame: Frames, values: FloatArray, scale: float) -> Frames:
    """uint8 [H, W, 3]: the frame in pale grey, over it the map [cells, cells], opaque at `scale` and beyond."""
    grey = np.asarray(Image.fromarray(frame).convert("L"), np.float32)
    ground = np.repeat((255 - PALE * (255 - grey))[..., None], 3, axis=2)
    height, width = grey.shape
    sized = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))[..., None]
    strength = np.minimum(np.abs(sized) / scale, 1.0)
    colour = np.where(sized > 0, np.array(RED, np.float32), np.array(BLUE, np.float32))
    drawn: Frames = np.round(ground * (1 - strength) + colour * strength).astype(np.uint8)
    return drawn


def scale_of(row: Row) -> float:
    """The largest share of a cell in either map of a row, in logits."""
    return max(float(np.abs(one.values).max()) for one in row.maps) or 1.0


def panels(explained: Sequence[Explained]) -> list[Panel]:
    """Panels of a report, thumbnails as small as all others in it."""
    return [
        Panel(
            Tile(thumbnail(one.frame[None]), one.name, one.shown.said, one.shown.blurred),
            [(row.said, _drawn(one, row)) for row in one.rows],
        )
        for one in explained
    ]


def _drawn(one: Explained, row: Row) -> list[tuple[str, str]]:
    scale = scale_of(row)
    return [(thumbnail(overlay(one.frame, m.values, scale)[None]), caption(m)) for m in row.maps]


def caption(one: Map) -> str:
    """What stands above a map: its label and probability."""
    return f"{LABELS[one.label]} {one.probability:.4f}"


def sheet(explained: Sequence[Explained], note: str) -> bytes:
    """A PNG with a row for each picture and network: the picture, then the maps of its two likeliest labels.

    `note` stands at the bottom. Names are drawn as they are, cut to NAME_CHARACTERS.
    """
    rows = [(one, row) for one in explained for row in one.rows]
    width, height = 3 * CELL_INCHES, len(rows) * (CELL_INCHES + ROW_INCHES) + NOTE_INCHES
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for at, (one, row) in enumerate(rows):
        top = height - at * (CELL_INCHES + ROW_INCHES)
        said = f"{one.name[:NAME_CHARACTERS]}\n{row.said}; full colour: ±{scale_of(row):.2g} logits a cell"
        _write(figure, 0.01, (top - 0.08) / height, said)
        drawn = [("", one.frame), *((caption(m), overlay(one.frame, m.values, scale_of(row))) for m in row.maps)]
        for column, (above, pixels) in enumerate(drawn):
            place = (column / 3 + 0.01, (top - ROW_INCHES - CELL_INCHES) / height, 1 / 3 - 0.02, CELL_INCHES / height)
            axes = figure.add_axes(place)
            axes.imshow(pixels, interpolation="nearest")
            axes.set_axis_off()
            _write(figure, column / 3 + 0.01, (top - ROW_INCHES + 0.17) / height, above)
    _write(figure, 0.01, (NOTE_INCHES - 0.12) / height, note)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font lacks is drawn as boxes
        figure.savefig(buffer, format="png", metadata={"Software": "moderation-trainer"})
    return buffer.getvalue()


def _write(figure: Figure, x: float, y: float, text: str) -> None:
    figure.text(x, y, text, va="top", fontsize=8.5, color=INK, linespacing=1.4, parse_math=False)
