"""A board's questions in, Grafana's JSON out, in the words of its own SDK. Knows no metric but that of promotions."""

import json
from dataclasses import dataclass
from itertools import count
from typing import Final, Literal

from grafana_foundation_sdk.builders import bargauge, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus as queries
from grafana_foundation_sdk.builders.common import StackingConfig
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import StackingMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType, DataSourceRef

SOURCE = DataSourceRef(type_val="prometheus", uid="moderation-prometheus")
HEIGHT = 8  # of Grafana's grid, which is 24 wide
PROMOTIONS = (
    "count by (weights) (moderation_weights_info) unless count by (weights) (moderation_weights_info offset 1m)"
)

Made = timeseries.Panel | stat.Panel | bargauge.Panel
KINDS: Final[dict[str, type[Made]]] = {
    "lines": timeseries.Panel, "shares": timeseries.Panel, "number": stat.Panel, "bars": bargauge.Panel,
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One question: `queries` are (PromQL, legend) pairs; `unit` is Grafana's name of it."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Literal["lines", "shares", "number", "bars"] = "lines"
    width: int = 8
    about: str = ""


@dataclass(frozen=True)
class Board:
    """A page: (row title, panels) pairs from top to bottom."""

    uid: str
    title: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]

    def panels(self) -> list[Panel]:
        """All of them, in order."""
        return [panel for _, panels in self.rows for panel in panels]


def to_json(board: Board) -> str:
    """The board as Grafana reads it."""
    made = (
        dashboards.Dashboard(board.title)
        .uid(board.uid)
        .tags(["moderation"])
        .description("Written by deploy/grafana/boards.py; change it there.")
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-6h", "now")
        .refresh("30s")
        .link(dashboards.DashboardLink("Boards").type(DashboardLinkType.DASHBOARDS).tags(["moderation"]).as_dropdown(True))
        .annotation(
            dashboards.AnnotationQuery().name("promotions").datasource(SOURCE).expr(PROMOTIONS).enable(True)
            .icon_color("purple")
        )
    )  # fmt: skip
    ids = count(1)
    for title, panels in board.rows:
        made = made.with_row(dashboards.Row(title).id(next(ids)))
        for panel in panels:
            made = made.with_panel(_panel(panel).id(next(ids)))
    return json.dumps(made.build(), cls=JSONEncoder, sort_keys=True, indent=2) + "\n"


def _panel(panel: Panel) -> Made:
    made = KINDS[panel.kind]().title(panel.title).unit(panel.unit).datasource(SOURCE)
    made = made.height(HEIGHT if panel.kind != "number" else HEIGHT // 2).span(panel.width).min(0)
    if panel.about:
        made = made.description(panel.about)
    if panel.kind == "shares" and isinstance(made, timeseries.Panel):
        made = made.stacking(StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(40).max(1)
    for letter, (expression, legend) in zip("ABCDEFGH", panel.queries, strict=False):
        query = queries.Dataquery().expr(expression).legend_format(legend).ref_id(letter)
        made = made.with_target(query.range() if panel.kind in ("lines", "shares") else query.instant())
    return made
