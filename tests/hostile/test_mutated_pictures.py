"""Pictures that a fuzzer broke: each ends as frames or as a reason, and costs no worker.

300 in the quick form, in the decoder itself     pytest tests/hostile/test_mutated_pictures.py
5,000 through decoder processes and a worker     pytest -m long tests/hostile/test_mutated_pictures.py
"""

import hashlib
import random
import time
from collections import Counter
from typing import get_args

import pytest

from tests.support.mutations import mutated, seeds, seeds_beside
from tests.support.place import Place
from tests.support.processes import decoders_of
from tests.support.worker import REPOSITORY
from worker.decode import DecoderPool
from worker.errors import ContentError, UndecidedReason
from worker.model.preprocessing import DecodeLimits, Preprocessing, decode

SEED = 20261124
QUICK, MANY = 300, 5000
SLOWEST_S = 10.0
HOSTILE = REPOSITORY.parent / "shared" / "data" / "hostile"
# Those whose bytes the decoder reads or refuses; the others are a decoder's death, see the counts.
ANSWERS = ("unreadable", "unsupported_format", "too_large")


def test_the_seeds_are_sound_and_the_mutations_are_the_same_each_time() -> None:
    """Or nothing below proves anything."""
    for data in seeds(random.Random(SEED)):
        decode(data, Preprocessing(resize=32, crop=32), DecodeLimits())
    first, again = ([hashlib.sha256(data).digest() for data in mutated(SEED, 50)] for _ in range(2))
    assert first == again and len(set(first)) > 40


def test_a_mutated_picture_ends_as_frames_or_as_a_reason() -> None:
    """Nothing else comes out of the decoder, and some of each kind does."""
    outcomes: Counter[str] = Counter()
    for data in mutated(SEED, QUICK):
        started = time.monotonic()
        try:
            outcomes[f"frames {len(decode(data, Preprocessing(), DecodeLimits()).frames) > 1}"] += 1
        except ContentError as error:
            outcomes[error.reason] += 1
        assert time.monotonic() - started < SLOWEST_S, hashlib.sha256(data).hexdigest()
    assert outcomes.keys() <= {"frames True", "frames False", *ANSWERS}
    assert min(outcomes[kind] for kind in ("frames True", "frames False", "unreadable", "unsupported_format")) > 0


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_five_thousand_through_decoder_processes() -> None:
    """Every one is answered within the time limit; what a decoder died of is counted and named."""
    restarts: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    slowest_s = 0.0
    pool = DecoderPool(
        Preprocessing(),
        DecodeLimits(),
        processes=1,
        timeout_s=8.0,
        memory_bytes=1536 * 2**20,
        on_restart=lambda cause: restarts.update([cause]),
    )
    with pool:
        for data in mutated(SEED, MANY, seeds_beside(HOSTILE)):
            started = time.monotonic()
            error = pool.submit(data).exception(60)
            slowest_s = max(slowest_s, time.monotonic() - started)
            assert error is None or isinstance(error, ContentError), error
            outcome = "frames" if error is None else error.reason
            outcomes[outcome] += 1
            assert outcome in ("frames", *ANSWERS), f"{outcome}: SHA-256 {hashlib.sha256(data).hexdigest()}"
    print(
        f"{MANY} mutated pictures in one decoder: {dict(outcomes)}, "
        f"restarts {dict(restarts)}, slowest {slowest_s:.2f} s"
    )
    assert slowest_s < SLOWEST_S
    assert outcomes["frames"] > MANY / 10 and outcomes["unreadable"] > MANY / 10


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_five_thousand_and_every_hostile_file_through_a_worker(place: Place) -> None:
    """One worker lives through all of them, and each gets a verdict within 10 s of its turn, healthy ones between."""
    worker = place.start_worker(ban_quota_share="1").wait_ready()
    named = sorted(HOSTILE.iterdir()) if HOSTILE.is_dir() else []
    pictures = [path.read_bytes() for path in named] + list(mutated(SEED, MANY, seeds_beside(HOSTILE)))
    healthy: list[str] = []
    outcomes: Counter[str] = Counter()
    slowest_s = 0.0
    started = time.monotonic()
    for first in range(0, len(pictures), 8):  # as many as a fresh worker holds: an item waits for seven others at most
        ids = [place.add(data) for data in pictures[first : first + 8]]
        if first % 80 == 0:
            healthy.append(place.add(label="approved"))
            ids.append(healthy[-1])
        begun = time.monotonic()
        found = place.judge(ids, timeout_s=120)
        slowest_s = max(slowest_s, time.monotonic() - begun)
        for content_id, document in found.items():
            if content_id not in healthy:
                outcomes[document.label or document.reasons[0]] += 1
            else:
                assert document.label == "approved"
    assert worker.process.poll() is None and worker.get("/healthz")[0] == 200
    assert outcomes.total() == len(pictures)
    assert outcomes.keys() <= {"approved", "not_suitable", "risked", *get_args(UndecidedReason)}
    assert outcomes["not_found"] == outcomes["fetch_failed"] == outcomes["model_failed"] == 0
    raw = place.broker.client()
    assert raw.xlen("moderation:dead-letter") == raw.xlen("moderation:uploads") == 0
    entries = place.entries()
    assert len(entries) == len(set(entries)) == len(pictures) + len(healthy)
    assert "Traceback" not in worker.log()
    causes = {
        cause: worker.metric("moderation_decoder_restarts_total", cause=cause)
        for cause in ("crash", "killed", "timeout")
    }
    print(
        f"{len(named)} hostile files, {MANY} mutated and {len(healthy)} healthy pictures through one worker in "
        f"{time.monotonic() - started:.0f} s: {dict(outcomes)}, decoder restarts {causes}, slowest batch of 8 "
        f"{slowest_s:.2f} s, {len(decoders_of(worker.process.pid))} decoders at the end"
    )
    assert slowest_s < SLOWEST_S
    assert worker.stop() == 0
