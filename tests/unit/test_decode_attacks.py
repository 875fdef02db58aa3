"""What `test_decode` does not try: decoders that lie, starve and wear out, and what each of them costs others."""

import ctypes
import errno
import json
import os
import platform
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from tests.support import crowded_decoder, exhausted_decoder, lying_decoder, needy_decoder, unfiltered_decoder
from tests.support.processes import decoders_of
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY
from worker import seccomp
from worker.decode import PICTURES_A_PROCESS, START_FAILURES, DecoderPool
from worker.decoder_program import Decode
from worker.errors import ContentError, UnavailableError
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits

PARAMETERS = Preprocessing(resize=32, crop=32)
PATIENCE_S = 90
MEMORY_BYTES = 256 * 2**20
TIMEOUT_S = 20.0  # far beyond what any harmless picture here takes, on a busy machine too

needs_filter = pytest.mark.skipif(not seccomp.available(), reason="here no process may filter its system calls")
LANDLOCK = max(0, ctypes.CDLL(None).syscall(444, None, 0, 1)) if sys.platform == "linux" else 0

MakePool = Callable[..., DecoderPool]


@pytest.fixture
def restarts() -> list[str]:
    """The causes that `on_restart` was told."""
    return []


@pytest.fixture
def make_pool(restarts: list[str]) -> Iterator[MakePool]:
    """Makes pools of two processes that run the lying decoder; sees to it that none of their processes is left."""
    made: list[DecoderPool] = []

    def make(
        processes: int = 2,
        timeout_s: float = TIMEOUT_S,
        memory_bytes: int = MEMORY_BYTES,
        decode: Decode = lying_decoder.decode,
    ) -> DecoderPool:
        pool = DecoderPool(
            PARAMETERS,
            DecodeLimits(),
            processes=processes,
            timeout_s=timeout_s,
            memory_bytes=memory_bytes,
            on_restart=restarts.append,
            decode=decode,
        )
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()
    assert decoders_of(os.getpid()) == []


def harmless(count: int, size: int = 1000) -> list[bytes]:
    """Different pictures that the lying decoder reads."""
    return [b"harmless %d " % number + random.randbytes(size) for number in range(count)]


def is_answer(future: "Future[Decoded]", data: bytes) -> bool:
    """Whether the future gives what decoding `data` gives."""
    decoded = future.result(PATIENCE_S)
    wanted = lying_decoder.answer(data, PARAMETERS)
    return (decoded.format, decoded.width, decoded.height) == (wanted.format, wanted.width, wanted.height) and bool(
        np.array_equal(decoded.frames, wanted.frames)
    )


def reason(future: "Future[Decoded]") -> str:
    """Why there are no frames."""
    error = future.exception(PATIENCE_S)
    assert isinstance(error, ContentError), error
    return error.reason


def wait_started(pool: DecoderPool, processes: int = 2) -> None:
    """Returns once every process of the pool takes pictures."""
    for future in [pool.submit(b"sleep 0.1 %d" % number) for number in range(2 * processes)]:
        future.result(PATIENCE_S)
    wait_until(lambda: len(decoders_of(os.getpid())) == processes, "all decoders run")


@pytest.mark.parametrize("word", [b"interrupt", b"unpicklable", b"odd shape"])
def test_a_decoder_that_breaks_its_word_condemns_that_picture(
    make_pool: MakePool, restarts: list[str], word: bytes
) -> None:
    """Whatever it raises or answers, the picture is `decoder_crashed` and the process goes on."""
    pool = make_pool()
    assert reason(pool.submit(word)) == "decoder_crashed"
    assert is_answer(pool.submit(b"harmless"), b"harmless")
    assert restarts == []


@pytest.mark.parametrize(
    "how",
    ["pickle", "size", "long", "json", "list", "reason", "frames", "many", "none", "numbers", "format", "nested"],
)
def test_a_process_taken_over_can_lie_about_its_picture_alone(
    make_pool: MakePool, restarts: list[str], how: str, tmp_path: Path
) -> None:
    """Garbage on its socket is no answer and is never unpickled; the process is ended, its neighbour not disturbed."""
    trap = tmp_path / "unpickled"
    pool = make_pool()
    pictures = harmless(10)
    futures = [pool.submit(data) for data in pictures]
    lie = pool.submit(b"lie " + json.dumps({"how": how, "folder": str(trap)}).encode())
    assert reason(lie) == "decoder_crashed"
    assert all(is_answer(future, data) for future, data in zip(futures, pictures, strict=True))
    assert is_answer(pool.submit(b"harmless"), b"harmless")
    assert not trap.exists()
    assert "timeout" not in restarts


def test_an_answer_that_comes_byte_by_byte_ends_with_its_time_limit(make_pool: MakePool, restarts: list[str]) -> None:
    """Or both processes would be held for hours, and everybody's pictures with them."""
    pool = make_pool(timeout_s=2.0)
    wait_started(pool)
    began = time.monotonic()
    lies = [pool.submit(b"lie " + json.dumps({"how": "drip", "folder": ""}).encode()) for _ in range(2)]
    behind = pool.submit(b"harmless")
    assert [reason(lie) for lie in lies] == ["decode_timeout"] * 2
    assert is_answer(behind, b"harmless")
    assert time.monotonic() - began < 15
    assert restarts == ["timeout"] * 2


def test_a_process_taken_over_is_told_no_secret(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its environment, as it is and as it was at the start, nor a command line holds a password or a key."""
    monkeypatch.setenv("MODERATION_REDIS_URL", "rediss://worker:geheim@redis:6379/0")
    monkeypatch.setenv("MODERATION_CONTENT_OPTIONS", '{"secret": "geheim"}')
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    known = lying_decoder.said(make_pool(processes=1).submit(b"tell").result(PATIENCE_S))
    assert "OPENBLAS_NUM_THREADS" in known and "decoder_program" in known, "or it knows nothing at all"
    assert "geheim" not in known and "MODERATION_" not in known and "AWS_" not in known


def speaks(pool: DecoderPool) -> bool:
    """Whether it says that no process can be started."""
    try:
        pool.check()
    except UnavailableError:
        return True
    return False


def reached(pool: DecoderPool, folder: Path) -> list[str]:
    """What `lying_decoder` got at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        attempt = b"reach %s %d" % (bytes(folder), server.getsockname()[1])
        return lying_decoder.said(pool.submit(attempt).result(PATIENCE_S)).split()


@needs_filter
def test_a_process_taken_over_calls_the_kernel_for_nothing_else(make_pool: MakePool, tmp_path: Path) -> None:
    """Of all that `lying_decoder` tries nothing works: on the worker, on files' names, on what outlives the process."""
    assert reached(make_pool(processes=1), tmp_path) == []


@needs_filter
@pytest.mark.skipif(platform.machine() != "x86_64", reason="only there a program may call in both ways")
def test_calls_of_32_bit_programs_are_filtered(make_pool: MakePool) -> None:
    """They have other numbers, by which all that is forbidden could be called."""
    program = "from tests.support.lying_decoder import called_as_32_bit; print(called_as_32_bit())"
    unfiltered = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=False)
    if unfiltered.returncode != 0:
        pytest.skip("this kernel has no such calls")
    assert int(unfiltered.stdout) > 0
    answer = make_pool(processes=1).submit(b"foreign").result(PATIENCE_S)
    assert int(lying_decoder.said(answer)) == -errno.EPERM


@needs_filter
def test_every_thread_of_a_decoder_is_filtered(make_pool: MakePool) -> None:
    """Those of the libraries that it has loaded by then too."""
    wait_started(make_pool(processes=1), processes=1)
    tasks = list(Path(f"/proc/{decoders_of(os.getpid())[0]}/task").iterdir())
    assert tasks and all("\nSeccomp:\t2\n" in (task / "status").read_text() for task in tasks)


@needs_filter
def test_a_process_taken_over_cannot_stand_still_for_good(make_pool: MakePool) -> None:
    """With the worker as its debugger it would be taken for dead, and never ended: `make_pool` looks for it."""
    assert reason(make_pool(processes=1).submit(b"stop")) == "decoder_crashed"


def test_what_a_process_taken_over_writes_is_not_in_the_log(
    make_pool: MakePool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor can it empty the log: stderr is the worker's own."""
    for decode in (lying_decoder.decode, unfiltered_decoder.decode):
        make_pool(processes=1, decode=decode).submit(b"say forged").result(PATIENCE_S)
    assert "forged" not in capfd.readouterr().err


def test_an_unfiltered_process_taken_over_reaches_little(make_pool: MakePool, tmp_path: Path) -> None:
    """No file of its user, no port, no program and no other process, as far as the system can forbid it without."""
    (tmp_path / "secret").write_text("geheim")
    (tmp_path / "spoil").write_text("precious")
    found = set(reached(make_pool(processes=1, decode=unfiltered_decoder.decode), tmp_path))
    assert found.isdisjoint({"limit", "read", "list", "write", "tcp", "udp", "unix"})
    if LANDLOCK:
        assert found.isdisjoint({"rename", "remove", "folder", "run"})
        assert LANDLOCK < 3 or "truncate" not in found
        assert LANDLOCK < 6 or "signal" not in found
        assert (tmp_path / "secret").read_text() == "geheim"
        assert LANDLOCK < 3 or (tmp_path / "spoil").read_text() == "precious"


PEEK = """
import ctypes, os, subprocess
from worker.decode import DecoderPool
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits
if os.getuid() == 0:  # root may read everything: be nobody
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as any process starts that has not changed its user
peek = lambda: subprocess.run(["cat", f"/proc/{os.getpid()}/environ"], capture_output=True).stdout
before = peek()
pool = DecoderPool(Preprocessing(), DecodeLimits(), processes=0, timeout_s=1, memory_bytes=1)
print(b"geheim" in before, b"geheim" in peek())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc to read it from")
def test_whoever_has_decoders_is_closed_to_them() -> None:
    """Before there is a pool any process of the same user reads its environment, passwords included; then none does."""
    command = [sys.executable, "-c", PEEK]
    environment = {**os.environ, "SECRET": "geheim"}
    said = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert said.stdout.split() == ["True", "False"], said.stderr


def test_ending_as_if_all_were_well_is_a_crash(make_pool: MakePool, restarts: list[str]) -> None:
    """Exit code 0 in the middle of a picture: noticed at once, not when the time is over."""
    pool = make_pool()
    assert reason(pool.submit(b"exit")) == "decoder_crashed"
    assert restarts == ["crash", "crash"]


def test_a_picture_that_spins_costs_its_time_limit_and_nobody_elses(make_pool: MakePool, restarts: list[str]) -> None:
    """`decode_timeout` about when the limit says, from inside C code too; the neighbours do not wait for it."""
    pool = make_pool(timeout_s=3.0)
    wait_started(pool)
    started = time.monotonic()
    bad = pool.submit(b"spin")
    pictures = harmless(30)
    futures = [pool.submit(data) for data in pictures]
    assert all(is_answer(future, data) for future, data in zip(futures, pictures, strict=True))
    assert not bad.done()
    assert reason(bad) == "decode_timeout"
    assert 2.9 <= time.monotonic() - started < 15
    assert restarts == ["timeout"]


def test_waiting_in_the_queue_is_no_time_of_the_picture(make_pool: MakePool) -> None:
    """The limit counts from the start of decoding: a long queue times nobody out."""
    pool = make_pool(processes=1, timeout_s=2.0)
    for future in [pool.submit(b"sleep 0.4 %d" % number) for number in range(7)]:
        future.result(PATIENCE_S)


def test_a_picture_that_grows_is_stopped_at_the_memory_limit(make_pool: MakePool, restarts: list[str]) -> None:
    """`too_large`; this process grows by none of it, and the decoder goes on."""
    pool = make_pool()
    wait_started(pool)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bad = [pool.submit(b"grow %d" % number) for number in range(4)]
    pictures = harmless(10)
    futures = [pool.submit(data) for data in pictures]
    assert {reason(future) for future in bad} == {"too_large"}
    assert all(is_answer(future, data) for future, data in zip(futures, pictures, strict=True))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < MEMORY_BYTES / 1024 / 4
    assert restarts == []


def test_bytes_beyond_a_decoders_memory_are_too_large(make_pool: MakePool, restarts: list[str]) -> None:
    """What cannot even be handed over is refused, and kills nothing."""
    pool = make_pool(memory_bytes=64 * 2**20)
    huge = pool.submit(bytes(100 * 2**20))
    assert is_answer(pool.submit(b"harmless"), b"harmless")
    assert reason(huge) == "too_large"
    assert restarts == []


def test_kills_in_the_middle_of_large_answers_stop_nobody(make_pool: MakePool, restarts: list[str]) -> None:
    """All decoders killed again and again while they send eight frames each: no wrong, lost or blamed picture."""
    pool = make_pool()
    wait_started(pool)
    pictures = [b"film " + random.randbytes(200_000) for _ in range(200)]
    futures = [pool.submit(data) for data in pictures]
    for share in (0.1, 0.4, 0.7):
        wait_until(lambda share=share: sum(f.done() for f in futures) >= share * len(futures), "some are decoded")
        for pid in decoders_of(os.getpid()):
            os.kill(pid, signal.SIGKILL)
    assert all(is_answer(future, data) for future, data in zip(futures, pictures, strict=True))
    assert set(restarts) == {"killed"}


def test_a_worn_out_process_is_replaced(make_pool: MakePool, restarts: list[str]) -> None:
    """After so many pictures a process ends, so that what they left behind in it does not add up."""
    pool = make_pool(processes=1)
    wait_started(pool, processes=1)
    first = decoders_of(os.getpid())
    for future in [pool.submit(data) for data in harmless(PICTURES_A_PROCESS + 1, size=10)]:
        future.result(PATIENCE_S)
    assert decoders_of(os.getpid()) != first
    assert restarts == []


def test_closing_while_the_processes_start_leaves_none(make_pool: MakePool) -> None:
    """UnavailableError for what waits; closing twice is fine; submitting afterwards brings no process to life."""
    pool = make_pool()
    waiting = pool.submit(b"harmless")
    pool.close()
    pool.close()
    assert isinstance(waiting.exception(0), UnavailableError)
    assert isinstance(pool.submit(b"harmless").exception(0), UnavailableError)
    assert decoders_of(os.getpid()) == []


def test_no_thread_outlives_the_pool(make_pool: MakePool) -> None:
    """`close` returns when the pool's own threads have ended."""
    before = set(threading.enumerate())
    pool = make_pool()
    pool.submit(b"harmless").result(PATIENCE_S)
    pool.close()
    assert set(threading.enumerate()) <= before


def test_a_cancelled_picture_disturbs_nobody(make_pool: MakePool, restarts: list[str]) -> None:
    """Whoever loses interest may cancel what is not in work yet."""
    pool = make_pool(processes=1)
    busy = pool.submit(b"sleep 1")
    wait_until(busy.running, "the decoder is busy")
    cancelled, other = pool.submit(b"exit"), pool.submit(b"harmless")
    assert cancelled.cancel()
    assert is_answer(other, b"harmless")
    assert restarts == []


def test_processes_that_cannot_start_are_spoken_of(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` raises UnavailableError after some attempts, instead of letting everybody wait for ever."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    pool = make_pool()
    waiting = pool.submit(b"harmless")
    wait_until(lambda: speaks(pool), f"{START_FAILURES} starts failed")
    assert not waiting.done()
    monkeypatch.undo()
    assert is_answer(waiting, b"harmless")
    pool.check()


def test_a_decoder_that_can_read_nothing_takes_no_picture(make_pool: MakePool) -> None:
    """Where a library needs what was given up, each picture would be called unreadable, and a person's."""
    pool = make_pool(processes=1, decode=needy_decoder.decode)
    waiting = pool.submit(b"harmless")
    wait_until(lambda: speaks(pool), f"{START_FAILURES} starts failed")
    assert not waiting.done()


@pytest.mark.parametrize(
    "decode",
    [
        pytest.param(exhausted_decoder.filters, marks=needs_filter),
        pytest.param(
            exhausted_decoder.layers, marks=pytest.mark.skipif(not LANDLOCK, reason="here there is no Landlock")
        ),
    ],
)
def test_a_decoder_that_is_not_confined_takes_no_picture(
    make_pool: MakePool, decode: Decode, caplog: pytest.LogCaptureFixture
) -> None:
    """What the system offers counts as done in the worker's log: a decoder that does not get it is none."""
    pool = make_pool(processes=1, decode=decode)
    waiting = pool.submit(b"harmless")
    wait_until(lambda: waiting.done() or speaks(pool), f"an answer, or {START_FAILURES} starts that failed")
    assert not waiting.done()
    assert "it could not give up all" in caplog.text and "SECURITY.md" in caplog.text


def test_a_decoder_starts_however_many_cores_there_are(make_pool: MakePool) -> None:
    """With the least memory that a setting gives it: a thread for each of 256 cores takes more, for an AVIF alone."""
    pool = make_pool(processes=1, memory_bytes=64 * 2**20, decode=crowded_decoder.decode)
    waiting = pool.submit(b"harmless")
    wait_until(lambda: waiting.done() or speaks(pool), "an answer, or that there is none to come")
    assert waiting.done() and is_answer(waiting, b"harmless")


def test_decoders_load_no_torch_whatever_started_them() -> None:
    """A process costs what reading pictures costs, also where the main module has imported torch."""
    program = (
        "import torch, os; from worker.decode import DecoderPool;"
        "from worker.model.preprocessing import Preprocessing; from worker.model.reading import DecodeLimits;"
        "from tests.support.processes import decoders_of;"
        "pool = DecoderPool(Preprocessing(), DecodeLimits(), processes=1, timeout_s=60, memory_bytes=2**30);"
        "pool.submit(b'').exception();"
        "maps = open(f'/proc/{decoders_of(os.getpid())[0]}/maps').read();"
        "print('torch' in maps, 'PIL' in maps); pool.close()"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert said.stdout == "False True\n"
