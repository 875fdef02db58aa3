"""Pictures that a fuzzer broke: each ends as frames or as a reason, and costs no worker.

300 in the quick form, in the decoder itself     pytest tests/hostile/test_mutated_pictures.py
5,000 through decoder processes and a worker     pytest -m long tests/hostile/test_mutated_pictures.py

The long form's figures, and those of every hostile file, go into tests/chaos/RESULTS.md.
"""

import hashlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import get_args

import pytest

from tests.chaos import results
from tests.support.mutations import mutated, seeds, seeds_beside
from tests.support.place import Place
from tests.support.worker import REPOSITORY
from worker.decode import DecoderPool
from worker.errors import ContentError, UndecidedReason
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits, decode

SEED = 20261124
QUICK, MANY = 300, 5000
SLOWEST_S = 10.0
COMMAND = "pytest -m long tests/hostile/test_mutated_pictures.py"
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
    results.begin("mutated, decoder")
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
    results.keep_beside(
        "mutated, decoder",
        what=f"{_mutated_pictures()} through one decoder process, one at a time",
        command=f"{COMMAND} -k decoder_processes",
        seed=SEED,
        result=f"{restarts.total()} decoder restarts; slowest {slowest_s:.2f} s; {_counts(outcomes)}",
    )
    assert slowest_s < SLOWEST_S
    assert outcomes["frames"] > MANY / 10 and outcomes["unreadable"] > MANY / 10


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not HOSTILE.is_dir(), reason="the hostile pictures are not there: ../shared/data/hostile")
def test_every_hostile_file_one_by_one_through_a_worker(place: Place) -> None:
    """One worker lives through all files, and each gets a verdict within 10 s, healthy ones between them."""
    results.begin("hostile files, worker")
    files = [path.read_bytes() for path in sorted(HOSTILE.iterdir())]
    assert len(files) > 500
    judged = _through_a_worker(place, files)
    results.keep_beside(
        "hostile files, worker",
        what=f"all {len(files)} files of ../shared/data/hostile, {judged.healthy} healthy pictures between them, "
        "through one worker",
        command=f"{COMMAND} -k hostile_file",
        result=judged.said(),
    )
    assert judged.slowest_s < SLOWEST_S


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_five_thousand_through_a_worker(place: Place) -> None:
    """The same with pictures that a fuzzer broke; the table says what they were made of."""
    results.begin("mutated, worker")
    judged = _through_a_worker(place, list(mutated(SEED, MANY, seeds_beside(HOSTILE))))
    results.keep_beside(
        "mutated, worker",
        what=f"{_mutated_pictures()}, {judged.healthy} healthy ones between them, through one worker",
        command=f"{COMMAND} -k five_thousand_through_a_worker",
        seed=SEED,
        result=judged.said(),
    )
    assert judged.slowest_s < SLOWEST_S


@dataclass
class Judged:
    """What became of pictures: their labels or reasons, and the longest time from an item's submission to its verdict,
    which it spent beside seven others."""

    outcomes: Counter[str] = field(default_factory=Counter)
    healthy: int = 0
    slowest_s: float = 0.0
    restarts: Counter[str] = field(default_factory=Counter)
    took_s: float = 0.0

    def said(self) -> str:
        """As a cell of the table, after the assertions that it repeats."""
        return (
            f"0 worker deaths, {self.restarts.total():g} decoder restarts, a verdict each, healthy ones `approved`, no "
            f"dead letter; slowest item {self.slowest_s:.2f} s; {_counts(self.outcomes)}; {self.took_s:.0f} s in all"
        )


def _through_a_worker(place: Place, pictures: list[bytes]) -> Judged:
    """Has one worker judge all of them, eight at a time, and checks that it lives and has lost or doubled nothing."""
    worker = place.start_worker(ban_quota_share="1").wait_ready()
    judged, healthy = Judged(), set[str]()
    started = time.monotonic()
    for first in range(0, len(pictures), 8):  # as many as a fresh worker holds
        ids = [place.add(data) for data in pictures[first : first + 8]]
        if first % 80 == 0:
            ids.append(place.add(label="approved"))
            healthy.add(ids[-1])
        for content_id, document in place.judge(ids, timeout_s=120).items():
            assert document.decided_at is not None
            judged.slowest_s = max(judged.slowest_s, (document.decided_at - document.enqueued_at).total_seconds())
            if content_id in healthy:
                assert document.label == "approved"
            else:
                judged.outcomes[document.label or document.reasons[0]] += 1
    judged.healthy, judged.took_s = len(healthy), time.monotonic() - started
    assert worker.process.poll() is None and worker.get("/healthz")[0] == 200
    assert "Traceback" not in worker.log()
    for cause in ("crash", "killed", "timeout"):
        judged.restarts[cause] = int(worker.metric("moderation_decoder_restarts_total", cause=cause))
    assert judged.outcomes.total() == len(pictures)
    assert judged.outcomes.keys() <= {"approved", "not_suitable", "risked", *get_args(UndecidedReason)}
    assert not any(judged.outcomes[reason] for reason in ("not_found", "fetch_failed", "model_failed"))
    raw = place.broker.client()
    assert raw.xlen("moderation:dead-letter") == raw.xlen("moderation:uploads") == 0
    entries = place.entries()
    assert len(entries) == len(set(entries)) == len(pictures) + len(healthy)
    assert worker.stop() == 0
    return judged


def _mutated_pictures() -> str:
    made, shared = len(seeds(random.Random(SEED))), len(seeds_beside(HOSTILE))
    if not shared:
        return f"{MANY:,} mutated pictures (all from {made} that the test makes: ../shared/data/hostile is not there)"
    of = f"a third from {shared} small files of ../shared/data/hostile, the others from {made} that the test makes"
    return f"{MANY:,} mutated pictures ({of})"


def _counts(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count:,} `{outcome}`" for outcome, count in outcomes.most_common())
