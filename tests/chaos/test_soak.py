"""20,000 pictures through one worker: its memory at the end is what it was after warm-up. Run with `-m long`."""

import itertools
import time
from pathlib import Path

import pytest

from tests.chaos import results
from tests.support.pictures import COLOURS, animation, picture
from tests.support.place import Place
from tests.support.processes import decoders_of
from tests.support.waiting import wait_until

PICTURES = 20_000
WARM_UP = 4_000
"""More than a decoder reads in its life, so that each is past its first and allocators have found their size."""
AT_ONCE = 500
MOST_GROWTH = 0.05
DIFFERENT = 60


def _resident_kib(pid: int) -> int:
    """What a process holds in memory now."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def _kinds() -> list[bytes]:
    """Small pictures of each format and label, animations, and some that cannot be read."""
    made = [
        picture(label, kind, (64, 56))
        for label in COLOURS
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP")
        for _ in range(DIFFERENT // 20)
    ]
    made += [animation(["approved", "not_suitable", "approved"], kind) for kind in ("GIF", "WEBP")]
    return [*made, b"no picture", made[0][:200], b"\x89PNG\r\n\x1a\n"]


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_memory_after_twenty_thousand_pictures_is_that_after_warm_up(place: Place) -> None:
    """Worker and decoders apart; each verdict is there. A decoder is replaced after 1,000 pictures: of decoders the
    largest seen after warm-up counts, against the largest seen in it."""
    results.begin("soak")
    worker = place.start_worker(ban_quota_share="1", decoders="1").wait_ready()
    kinds = _kinds()
    for number, data in enumerate(kinds):
        (place.content / f"kind{number}").write_bytes(data)
    submitted = 0
    worker_kib: list[int] = []
    decoder_kib: dict[bool, int] = {False: 0, True: 0}
    numbers = itertools.count()
    started = time.monotonic()
    while submitted < PICTURES:
        ids = []
        for number in itertools.islice(numbers, AT_ONCE):
            (place.content / f"soak{number}").hardlink_to(place.content / f"kind{number % len(kinds)}")
            ids.append(f"soak{number}")
        place.judge(ids, timeout_s=120)
        for content_id in ids:
            (place.content / content_id).unlink()
        submitted += len(ids)
        warm = submitted > WARM_UP
        decoder_kib[warm] = max([decoder_kib[warm], *map(_resident_kib, decoders_of(worker.process.pid))])
        if submitted >= WARM_UP:
            worker_kib.append(_resident_kib(worker.process.pid))
    seconds = time.monotonic() - started
    # The median of the last five looks: a collection of garbage may be due at any one of them.
    first, last = worker_kib[0], sorted(worker_kib[-5:])[2]
    decoder_growth = decoder_kib[True] / decoder_kib[False] - 1
    results.keep_beside(
        "soak",
        what=f"{submitted:,} pictures through one worker; resident memory after {WARM_UP:,} and at the end",
        command="pytest -m long tests/chaos/test_soak.py",
        result=f"worker {first / 1024:.1f} MiB, then {last / 1024:.1f} ({last / first - 1:+.1%}); decoder at most "
        f"{decoder_kib[False] / 1024:.1f} MiB before and {decoder_kib[True] / 1024:.1f} after ({decoder_growth:+.1%}); "
        f"{submitted / seconds:.0f} pictures/s, {seconds:.0f} s",
    )
    assert len(place.entries()) == PICTURES
    wait_until(lambda: place.broker.client().xlen("moderation:uploads") == 0, "the intake to be empty")
    assert last <= first * (1 + MOST_GROWTH), "the worker grows"
    assert decoder_growth <= MOST_GROWTH, "decoders grow"
    assert worker.stop() == 0
