"""The pipeline's own clock: what stands still is told from what only had nothing to do."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.support.worker import Broker
from worker import bus
from worker.batcher import Batcher
from worker.content import ContentStore
from worker.decode import DecoderPool
from worker.entry import Entry
from worker.intake import Intake
from worker.metrics import Metrics
from worker.model.preprocessing import DecodeLimits, Preprocessing
from worker.pipeline import Pipeline, Rules
from worker.publish import Publisher

IDLE_S = 1.5


@pytest.fixture
def pipeline(broker: Broker, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline whose content folder holds nothing but what a test puts there."""
    client = bus.connect(broker.url)
    intake = Intake(client, "test", 15)
    intake.ensure_groups()
    batcher = Batcher(lambda frames: (_ for _ in ()).throw(AssertionError("nothing is scored here")), max_images=1)
    decoders = DecoderPool(Preprocessing(), DecodeLimits(), processes=1, timeout_s=5, memory_bytes=2**30)
    made = Pipeline(
        content=ContentStore(f"file://{tmp_path}/{{content_id}}", max_bytes=1000, timeout_s=1),
        decoders=decoders,
        batcher=batcher,
        publisher=Publisher(client, 100),
        intake=intake,
        metrics=Metrics(),
        rules=Rules("held", 0.0, 0.0, 0.0),
        fetch_threads=2,
    )
    yield made
    made.close()
    batcher.close()
    decoders.close()


def entry(number: int, content_id: str) -> Entry:
    """A claim that no server knows of."""
    return Entry(bus.UPLOADS, f"{number}-0".encode(), content_id, False, 1000)


def test_time_without_work_is_no_standstill(pipeline: Pipeline, tmp_path: Path) -> None:
    """Given up, then idle, then at work again: only time with work in hand counts."""
    os.mkfifo(tmp_path / "one")
    os.mkfifo(tmp_path / "two")
    pipeline.accept([entry(1, "one")])
    pipeline.abandon(pipeline.in_work())
    idle_until = time.monotonic() + IDLE_S
    wait_until(lambda: time.monotonic() > idle_until, "some idle time")
    pipeline.accept([entry(2, "two")])
    assert pipeline.stands_still_s() < IDLE_S / 2


def test_giving_up_is_no_progress(pipeline: Pipeline, tmp_path: Path) -> None:
    """Work that is only ever given up stands still, however often it is taken up again."""
    os.mkfifo(tmp_path / "one")
    deadline = time.monotonic() + IDLE_S
    number = 0
    while time.monotonic() < deadline:
        number += 1
        pipeline.accept([entry(number, "one")])
        now = time.monotonic()
        wait_until(lambda now=now: time.monotonic() > now + 0.2, "a moment in work")
        pipeline.abandon(pipeline.in_work())
    pipeline.accept([entry(number + 1, "one")])
    assert pipeline.stands_still_s() > IDLE_S / 2
