"""The decoders of a running worker: pictures that are slow, hang or crash there, and what that costs the others."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.pictures import picture
from tests.support.place import Place
from tests.support.processes import decoders_of
from tests.support.waiting import wait_until

TIME_LIMIT_S = 5.0


def slow_picture() -> bytes:
    """60 megapixels, which take a decoder for seconds."""
    return picture("risked", "PNG", (7740, 7740), compress_level=1)


def cpu_ticks(pid: int) -> int:
    """The processor time that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


def takes_pictures(pid: int) -> bool:
    """Whether a decoder has started: the last thing it does before is to forbid itself to open anything."""
    limits = Path(f"/proc/{pid}/limits").read_text()
    return limits.partition("Max open files")[2].split()[0] == "0"


def test_two_slow_pictures_keep_no_other_waiting(place: Place) -> None:
    """With a third decoder, what was submitted behind them is judged meanwhile, not after them."""
    slow = [place.add(slow_picture()) for _ in range(2)]
    others = [place.add() for _ in range(30)]
    place.start_worker(decoders="3", decode_timeout_s="40").wait_ready()
    place.judge(place.add())
    place.client.submit([*slow, *others])
    found = place.client.wait([*slow, *others], 90)
    assert {found[content_id].label for content_id in slow} == {"risked"}
    order = [content_id for content_id in place.entries() if content_id in found]
    assert set(order[-2:]) == set(slow), "others waited for a slow picture"


def test_pictures_that_hang_in_every_decoder_cost_the_others_one_time_limit(place: Place) -> None:
    """Two decoders stand still, each with a picture: both are given up when their time is over, nobody else is."""
    worker = place.start_worker(decoders="2", decode_timeout_s=str(TIME_LIMIT_S)).wait_ready()
    still = decoders_of(worker.process.pid)
    wait_until(lambda: all(map(takes_pictures, still)), "both decoders to have started")
    place.judge([place.add() for _ in range(20)])
    for pid in still:
        os.kill(pid, signal.SIGSTOP)
    assert len(still) == 2
    ids = [place.add() for _ in range(20)]
    began = time.monotonic()
    found = place.judge(ids)
    waited_s = time.monotonic() - began
    assert sorted(document.reasons for document in found.values() if document.status == "undecided") == [
        ("decode_timeout",), ("decode_timeout",),
    ]  # fmt: skip
    assert {document.label for document in found.values() if document.status == "decided"} == {"approved"}
    assert TIME_LIMIT_S <= waited_s < 2 * TIME_LIMIT_S, "all wait for one limit, and nobody for two"
    assert worker.metric("moderation_decoder_restarts_total", cause="timeout") == 2
    assert set(still).isdisjoint(decoders_of(worker.process.pid))


@pytest.mark.parametrize(("decoder_goes_on", "more_bytes"), [(False, 0), (True, 0), (False, 5_000_000)])
def test_a_pause_is_no_pictures_fault(place: Place, decoder_goes_on: bool, more_bytes: int) -> None:
    """As of a container that is frozen or a machine that is saved, or of the worker alone while the answer comes; or
    where the picture is on its way, and larger than what a socket takes: the time does not count against it."""
    worker = place.start_worker(decoders="1", decode_timeout_s=str(TIME_LIMIT_S)).wait_ready()
    place.judge(place.add())
    (decoder,) = decoders_of(worker.process.pid)
    os.kill(decoder, signal.SIGSTOP)
    content_id = place.add(picture("approved") + bytes(more_bytes))
    place.client.submit(content_id)
    wait_until(lambda: worker.metric("moderation_stage_seconds_count", stage="fetch") == 2, "the picture to be fetched")
    worker.process.send_signal(signal.SIGSTOP)
    if decoder_goes_on:
        os.kill(decoder, signal.SIGCONT)
    until = time.monotonic() + 2 * TIME_LIMIT_S
    wait_until(lambda: time.monotonic() > until, "the pause to pass", 3 * TIME_LIMIT_S)
    worker.process.send_signal(signal.SIGCONT)
    os.kill(decoder, signal.SIGCONT)
    assert place.client.wait(content_id, 60)[content_id].label == "approved"
    assert worker.metric("moderation_decoder_restarts_total") == 0


def test_a_decoder_that_segfaults_costs_one_process_and_one_undecided(place: Place) -> None:
    """In the middle of a picture, as a fault in an image library would: the pictures around it are judged."""
    worker = place.start_worker(decoders="1", decode_timeout_s="40").wait_ready()
    before, after = [place.add() for _ in range(10)], [place.add() for _ in range(10)]
    place.judge(before)
    (decoder,) = decoders_of(worker.process.pid)
    begun = cpu_ticks(decoder)
    fatal = place.add(slow_picture())
    place.client.submit([fatal, *after])
    wait_until(lambda: cpu_ticks(decoder) > begun + 20, "the decoder to be busy with the picture")
    os.kill(decoder, signal.SIGSEGV)
    found = place.client.wait([fatal, *after], 60)
    document = found.pop(fatal)
    assert (document.reasons, document.ban, document.review) == (("decoder_crashed",), False, True)
    assert {document.label for document in found.values()} == {"approved"}
    assert worker.metric("moderation_decoder_restarts_total") == 1
    assert worker.metric("moderation_decoder_restarts_total", cause="crash") == 1
    assert worker.process.poll() is None and place.broker.client().xlen("moderation:dead-letter") == 0
