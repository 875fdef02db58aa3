"""Decoder processes that crash, hang, grow, are killed: each costs one picture at most, and nobody else's."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.support.bad_decoder import decode
from tests.support.pictures import picture
from tests.support.processes import decoders_of, lives
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY
from worker.decode import DecoderPool
from worker.decoder_program import NICER_BY
from worker.errors import ContentError, UnavailableError
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits

TIMEOUT_S = 2.0
PATIENCE_S = 60.0


class Pool(DecoderPool):
    """Decoders that run `bad_decoder`, and what they were restarted for."""

    def __init__(self, processes: int = 2) -> None:
        self.causes: Counter[str] = Counter()
        super().__init__(
            Preprocessing(),
            DecodeLimits(),
            processes=processes,
            timeout_s=TIMEOUT_S,
            memory_bytes=512 * 2**20,
            on_restart=lambda cause: self.causes.update([cause]),
            decode=decode,
        )


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool, closed afterwards."""
    with Pool() as made:
        yield made


def value(future: "Future[Decoded]") -> int:
    """The byte that the picture is full of."""
    frames = future.result(PATIENCE_S).frames
    assert frames.shape == (1, 224, 224, 3) and frames.min() == frames.max()
    return int(frames[0, 0, 0, 0])


def reason(future: "Future[Decoded]") -> str:
    """Why the picture is undecided."""
    with pytest.raises(ContentError) as caught:
        future.result(PATIENCE_S)
    return caught.value.reason


def ended_by(number: signal.Signals, pid: int) -> bool:
    """Sends it; whether the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return not lives(pid)


def test_every_picture_gets_its_own_frames(pool: Pool) -> None:
    """200 pictures through two processes: no answer is anybody else's, and no process is restarted."""
    futures = [pool.submit(bytes([n])) for n in range(200)]
    assert [value(future) for future in futures] == list(range(200))
    assert not pool.causes


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"segfault", "decoder_crashed"),
        (b"abort", "decoder_crashed"),
        (b"kill", "decoder_crashed"),
        (b"raise", "decoder_crashed"),
        (b"hang", "decode_timeout"),
        (b"eat", "too_large"),
        (b"refuse", "unreadable"),
    ],
)
def test_a_bad_picture_costs_nobody_else(pool: Pool, data: bytes, expected: str) -> None:
    """It ends with its reason, and the pictures before, beside and after it with their frames."""
    before = [pool.submit(bytes([n])) for n in range(5)]
    bad = pool.submit(data)
    after = [pool.submit(bytes([n])) for n in range(5, 20)]
    assert reason(bad) == expected
    assert [value(future) for future in before + after] == list(range(20))


def test_causes_are_told(pool: Pool) -> None:
    """A kill from outside is tried four times before the picture is blamed."""
    assert reason(pool.submit(b"kill")) == "decoder_crashed"
    assert reason(pool.submit(b"hang")) == "decode_timeout"
    assert pool.causes == {"killed": 4, "timeout": 1}


def test_a_fault_costs_one_process_and_its_picture(pool: Pool) -> None:
    """Whatever process it strikes: no such picture is tried again, and others are read as if nothing had been."""
    faults = [b"segfault", b"abort", b"signal BUS", b"signal ILL", b"signal FPE"]
    good, bad = [], []
    for number, data in enumerate(faults):
        good.append(pool.submit(bytes([number])))
        bad.append(pool.submit(data))
    good.append(pool.submit(bytes([len(faults)])))
    assert [reason(future) for future in bad] == ["decoder_crashed"] * len(faults)
    assert [value(future) for future in good] == list(range(len(faults) + 1))
    assert pool.causes == {"crash": len(faults)}


def test_one_kill_blames_nobody() -> None:
    """The kernel short of memory, or an operator, struck the process that happened to read this picture."""
    with Pool(processes=1) as pool:
        value(pool.submit(b"\0"))
        for killed_by in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
            struck = pool.submit(b"nap")
            wait_until(struck.running, "the picture to be read")
            (reader,) = decoders_of(os.getpid())
            wait_until(lambda pid=reader, by=killed_by: ended_by(by, pid), "the decoder's end")
            assert value(struck) == ord("n")
        assert pool.causes == {"killed": 3}


def test_ctrl_c_is_meant_for_the_worker() -> None:
    """A terminal sends it to the decoders as well, which go on while the worker drains."""
    with Pool(processes=1) as pool:
        value(pool.submit(b"\0"))
        struck = pool.submit(b"nap")
        wait_until(struck.running, "the picture to be read")
        (reader,) = decoders_of(os.getpid())
        os.kill(reader, signal.SIGINT)
        assert value(struck) == ord("n")
        assert decoders_of(os.getpid()) == [reader] and not pool.causes


def test_killing_every_decoder_between_jobs_blames_nobody(pool: Pool) -> None:
    """Ten times over: later pictures are read as if nothing had been."""
    for round_ in range(10):
        assert value(pool.submit(bytes([round_]))) == round_
        for pid in decoders_of(os.getpid()):
            ended_by(signal.SIGKILL, pid)


def test_killing_decoders_under_load_blames_nobody(pool: Pool) -> None:
    """Kills at any moment while 400 pictures stream through: every one is read, by its own bytes."""
    value(pool.submit(b"\0"))
    futures = [pool.submit(bytes([n % 251])) for n in range(400)]
    kills = 0
    while not futures[-1].done() and kills < 12:
        done = sum(future.done() for future in futures)
        for pid in decoders_of(os.getpid())[:1]:
            ended_by(signal.SIGKILL, pid)  # or it was struck before, and ends in this moment
            kills += 1
        wait_until(lambda done=done: sum(f.done() for f in futures) > done, "a picture after the kill", PATIENCE_S)
    assert [value(future) for future in futures] == [n % 251 for n in range(400)]
    assert kills > 0


def test_decoders_make_way_for_the_network(pool: Pool) -> None:
    """On the cores of the network each runs at a lower priority than the process that it works for."""
    assert value(pool.submit(bytes([1]))) == 1
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    lower = min(ours + NICER_BY, 19)
    wait_until(lambda: len(decoders_of(os.getpid())) == 2, "both run", PATIENCE_S)
    wait_until(
        lambda: {os.getpriority(os.PRIO_PROCESS, pid) for pid in decoders_of(os.getpid())} == {lower},
        f"the decoders' priority is lower than ours, {ours}",
        PATIENCE_S,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own rule of who is ended where memory runs short")
def test_where_memory_runs_short_a_decoder_goes_first(pool: Pool) -> None:
    """And not the worker, with all that it holds: the kernel ends whoever has the most, unless told otherwise."""
    assert value(pool.submit(bytes([1]))) == 1
    scores = {Path(f"/proc/{pid}/oom_score_adj").read_text().strip() for pid in decoders_of(os.getpid())}
    assert "1000" in scores


def test_closing_refuses_what_waits_and_leaves_no_process() -> None:
    """Nothing waits for ever, and nothing is left."""
    pool = Pool()
    value(pool.submit(b"\1"))
    hanging = [pool.submit(b"hang") for _ in range(6)]
    started = time.monotonic()
    pool.close()
    for future in [*hanging, pool.submit(b"\1")]:
        with pytest.raises(UnavailableError):
            future.result(PATIENCE_S)
    assert time.monotonic() - started < 10
    wait_until(lambda: not decoders_of(os.getpid()), "the decoders to end")


def test_a_killed_parent_leaves_no_decoder() -> None:
    """Not even one that is busy."""
    program = (
        "from tests.unit.test_decode import Pool; pool = Pool(); pool.submit(b'x').result(60); pool.submit(b'hang');"
        "print('ready', flush=True); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
    children = decoders_of(parent.pid)
    assert len(children) >= 1
    parent.kill()
    parent.communicate()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "the orphans to end")


def test_the_real_decode_runs_in_the_processes() -> None:
    """A picture's bytes become its frames; other bytes a reason."""
    with DecoderPool(Preprocessing(), DecodeLimits(), processes=1, timeout_s=30, memory_bytes=2**30) as pool:
        assert pool.submit(picture("risked")).result(PATIENCE_S).frames.shape == (1, 224, 224, 3)
        assert reason(pool.submit(b"nothing that is a picture")) == "unsupported_format"
