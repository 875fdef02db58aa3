"""How a picture becomes a network's input: the numbers of it, which trainer and worker share and a version keeps.

Checked when they are made, and nothing else: what is done with them is `reading`'s and `views`'. Knows no pictures.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from worker.errors import WeightsError

_INTERPOLATIONS: Final = ("bilinear", "bicubic")

_BEFORE: Final[Mapping[str, Any]] = {
    "jpeg_margins": (2.0, 2.0),
    "on_black": False,
    "as_tagged": False,
    "long_from": 0.0,
}
"""What holds for versions whose manifest does not say it, for they are from before there was such a field."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network's input; part of a version's identity. The defaults are ImageNet's.

    `resize` and `crop` are pixels, `mean` and `std` refer to RGB in 0..1, `max_frames` is how many frames of an
    animation, or squares of a long picture, are judged. A JPEG is decoded at 1/2 of its size as long as the first of
    `jpeg_margins` times `resize` remains of its shorter side, at 1/4 or 1/8 as long as the second does: what is left is
    scaled by an antialiasing filter, and the less that has to do the sharper the picture comes out. At the defaults a
    picture changes about as much as by saving it at another JPEG quality, or less (measured on photographs and
    renderings, tests/benchmarks/RESULTS.md); below them more.

    With `on_black` what is transparent is judged on black as well as on white, the grounds of light and dark pages:
    one picture can be drawn to show one thing on the one and another on the other. With `as_tagged` a picture is judged
    in the colours that its ICC profile or gamma asks for as well, where those are others than its numbers: a browser
    shows them. Of a still picture whose longer side is at least `long_from` times the shorter (0: of none), such as a
    strip of comics, squares all along it are judged, not its middle alone.

    Raises WeightsError for values that this code cannot serve.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    max_frames: int = 8
    jpeg_margins: tuple[float, float] = (1.5, 4.0)
    on_black: bool = True
    as_tagged: bool = True
    long_from: float = 2.5

    def __post_init__(self) -> None:
        whole = (self.resize, self.crop, self.max_frames)
        if not all(type(value) is int for value in whole):
            raise _not_supported("resize, crop and max_frames must be whole numbers")
        if not 1 <= self.crop <= self.resize <= 4096:
            raise _not_supported(f"crop {self.crop} must be at least 1 and at most resize {self.resize}, that 4096")
        if not 1 <= self.max_frames <= 64:
            raise _not_supported(f"max_frames {self.max_frames} must be from 1 to 64")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(type(value) is float and math.isfinite(value) for value in values):
                raise _not_supported(f"{name} must be three finite numbers")
        if min(self.std) <= 0:
            raise _not_supported("std must be greater than 0")
        if self.interpolation not in _INTERPOLATIONS:
            raise _not_supported(f"interpolation {self.interpolation!r} is none of {', '.join(_INTERPOLATIONS)}")
        if len(self.jpeg_margins) != 2 or not all(type(value) is float for value in self.jpeg_margins):
            raise _not_supported("jpeg_margins must be two numbers")
        if not 1 <= self.jpeg_margins[0] <= self.jpeg_margins[1] <= 64:
            raise _not_supported("jpeg_margins must be from 1 to 64, and the second no less than the first")
        if type(self.on_black) is not bool or type(self.as_tagged) is not bool:
            raise _not_supported("on_black and as_tagged must be true or false")
        if type(self.long_from) is not float or not (self.long_from == 0 or 1 <= self.long_from <= 1000):
            raise _not_supported("long_from must be 0, or from 1 to 1000")

    @property
    def most_views(self) -> int:
        """How many frames come of a picture at most: no moment and no square makes way for it seen otherwise."""
        return self.max_frames * (2 if self.on_black else 1) * (2 if self.as_tagged else 1)

    def to_json(self) -> dict[str, Any]:
        """The form that stands in a manifest; `from_json` reads it back to an equal value."""
        document = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        for name, value in _BEFORE.items():
            if getattr(self, name) == value:
                del document[name]  # as it was written before there was such a field, for it decides the id
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Preprocessing":
        """The preprocessing in a manifest. WeightsError where a field is missing, unknown, or not supported."""
        document = {**_BEFORE, **document}
        if odd := document.keys() ^ {field.name for field in fields(cls)}:
            raise _not_supported(f"its field {min(map(str, odd))!r} is missing or unknown")
        return cls(**document | {name: _floats(name, document[name]) for name in ("mean", "std", "jpeg_margins")})


def _floats(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not all(type(value) in (int, float) for value in values):
        raise _not_supported(f"{name} must be a list of numbers")
    return tuple(float(value) for value in values)


def _not_supported(what: str) -> WeightsError:
    return WeightsError(f"the preprocessing cannot be served, {what}: publish the version again or update the worker")
