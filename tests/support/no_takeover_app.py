"""The tiny app whose workers never take over what a dead one left: what the chaos suite must notice."""

from tests.support.tiny_app import app
from worker.entry import Entry
from worker.intake import Intake


def _takes_nothing(self: Intake, stream: str, count: int) -> list[Entry]:
    return []


Intake.take_over = _takes_nothing

__all__ = ["app"]
