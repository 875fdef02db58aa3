"""How much a puller lets in, by what its pipeline says."""

from typing import Any, cast

import pytest

from worker.intake import Intake
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.puller import FIRST_IN_WORK, Puller


class Said:
    """A pipeline in a state that is told."""

    def __init__(self, in_work: int, held_up: int, judged: int) -> None:
        self._in_work, self._held_up, self._judged = in_work, held_up, judged

    def in_work(self) -> list[Any]:
        """So many."""
        return [None] * self._in_work

    def held_up(self) -> int:
        """Of what is in work, or was."""
        return self._held_up

    def judged_lately(self) -> int:
        """In the last seconds."""
        return self._judged


@pytest.mark.parametrize(
    ("in_work", "held_up", "judged", "room"),
    [
        pytest.param(0, 0, 0, FIRST_IN_WORK, id="nothing judged yet"),
        pytest.param(0, 0, 1000, 128, id="quick"),
        pytest.param(40, 40, 0, FIRST_IN_WORK, id="others need not wait for what is held up"),
        pytest.param(0, 120, 0, 8, id="results of what was left to others wait for Redis"),
        pytest.param(0, 128, 1000, 0, id="and nothing more comes where they are as many as may be in work"),
    ],
)
def test_room(in_work: int, held_up: int, judged: int, room: int) -> None:
    """Two batches of 64 at most, and no more than was judged lately."""
    puller = Puller(
        cast(Intake, None), cast(Pipeline, Said(in_work, held_up, judged)), Metrics(), max_batch=64, in_flight=1,
        claim_deadline_s=120, fetch_timeout_s=30, takeover_idle_s=0, watch=lambda: None, on_housekeeping=lambda: None,
    )  # fmt: skip
    assert puller._room() == room
