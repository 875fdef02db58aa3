"""A template and what it shows in, one HTML page out that needs nothing else.

Everything is escaped by jinja2. Nothing in a page asks for anything outside it: pictures and drawings are data URIs,
there is no script at all (a picture is unblurred by a checkbox and a style rule), and a content security policy in each
page says so to the browser. Knows no figures and no pictures.
"""

import base64
from collections.abc import Sequence
from typing import Any

import jinja2


def render(template: str, **values: Any) -> bytes:
    """The page, UTF-8. File names that are no text are shown with replacement characters."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": _share, "interval": _interval, "number": _number, "drawing": _drawing}
    return environment.get_template(template).render(**values).encode("utf-8", "replace")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _interval(pair: Sequence[float] | None, percent: bool = True) -> str:
    if pair is None:
        return "–"
    return f"{100 * pair[0]:.1f}–{100 * pair[1]:.1f} %" if percent else f"{pair[0]:.3f}–{pair[1]:.3f}"


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _drawing(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
