"""deploy/grafana: the boards are what the code says, and every panel of them has something to show."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.grafana.boards import BOARDS, FOLDER, Panel, to_json
from deploy.grafana.panels import PROMOTIONS, Board
from tests.deploy.conftest import Watched
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY

PROVISIONING = REPOSITORY / "deploy" / "grafana" / "provisioning"
PANELS = [(board, panel) for board in BOARDS for panel in board.panels()]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_the_json_in_the_repository_is_what_the_code_writes(board: Board) -> None:
    """`python -m deploy.grafana.boards` was run after the last change."""
    assert (FOLDER / f"{board.uid}.json").read_text(encoding="utf-8") == to_json(board)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_a_board_is_well_formed(board: Board) -> None:
    """Each panel has an ID of its own, a place of its own, and asks the provisioned data source."""
    document = json.loads((FOLDER / f"{board.uid}.json").read_text(encoding="utf-8"))
    sources = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids)) and 0 not in ids
    cells: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24 and not own & cells, panel["title"]
        cells |= own
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] in {source["uid"] for source in sources}
    assert [p["title"] for p in document["panels"] if p["type"] != "row"] == [p.title for p in board.panels()]


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=[f"{b.uid}-{p.title}" for b, p in PANELS])
def test_every_query_of_a_panel_has_data(watched: Watched, board: Board, panel: Panel) -> None:
    """Real series of a real Prometheus, with a number in at least one, and each with the labels its legend names."""
    for expression, legend in panel.queries:
        found = watched.prometheus.query(expression)
        assert found, expression
        assert any(math.isfinite(value) for _, value in found), (expression, found)
        named = [part.partition("}}")[0] for part in legend.split("{{")[1:]]
        assert all(labels.get(name) for labels, _ in found for name in named), (legend, found)


def test_promotions_are_marked(watched: Watched) -> None:
    """The annotation of all boards finds the promotion that the fixture made."""

    def marked() -> set[str]:
        """Looked for five times as often as figures come: all of this may be over in a second."""
        marks = watched.prometheus.query_range(PROMOTIONS, watched.began, watched.prometheus.now(), 0.2)
        return {series["metric"]["weights"] for series in marks}

    wait_until(lambda: watched.place.store.champion() in marked(), "a mark of the promotion")


def test_the_boards_can_be_drawn(watched: Watched, tmp_path: Path) -> None:
    """As for the documentation: one picture a board."""
    command = [sys.executable, "-m", "deploy.grafana.pictures", f"http://127.0.0.1:{watched.prometheus.port}"]
    subprocess.run([*command, str(tmp_path), "--minutes", "2"], cwd=REPOSITORY, check=True, timeout=120)
    pictures = sorted(tmp_path.glob("*.png"))
    assert [picture.stem for picture in pictures] == sorted(board.uid for board in BOARDS)
    kept = REPOSITORY / "deploy" / "grafana" / "pictures"
    assert sorted(picture.stem for picture in kept.glob("*.png")) == sorted(board.uid for board in BOARDS)
