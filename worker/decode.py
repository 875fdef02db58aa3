"""Turns untrusted bytes into uint8 frames, in processes that may die.

Bytes go in, `Decoded` frames come out; how a picture is read is `model.reading`, how a process is spoken to is
`decoder_process`, and how it confines itself `decoder_program`. This module holds several of them, ends what takes too
long and decides what a death proves. Knows nothing of IDs, queues, networks or verdicts.

One thread and one socket a process, and nothing shared between processes: a death, wherever it strikes, is known at
once and concerns the one picture in work there. (Processes that share a pipe and its lock all stand still when one
of them is killed while it holds the lock.)
"""

import logging
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Self

from worker.decoder_process import DecoderDiedError, DecoderProcess
from worker.decoder_program import Decode, keep_to_itself
from worker.errors import ContentError, ModerationError, UnavailableError
from worker.model import reading
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits

logger = logging.getLogger(__name__)

START_PAUSE_S = 1.0
# Failed starts in a row after which `check` speaks of it.
START_FAILURES = 3
# What pictures leave behind in a process, such as a library's leak, must not add up to somebody's `too_large`.
# Fewer would also leave a process that a picture took over fewer others to lie about. But a start takes a core 0.15 s,
# as long as reading some fifty pictures, and a fork for each picture longer than reading it: 7 ms to 1 to 3 ms.
PICTURES_A_PROCESS = 1000
# What a death adds to the evidence against the picture in work. A kill comes from outside, from the kernel short of
# memory among others, and was most likely meant for the process. A fault is of the code that reads this picture. An
# earlier picture may have broken the process, but one that can do that could also have forged this one's answer; and
# what is undecided is looked at by a person. An end without such a signal names no cause.
EVIDENCE_OF_KILL = 1
EVIDENCE_OF_END = 2
EVIDENCE_OF_FAULT = 4
CONDEMNED_AT = 4
KILLS = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)
FAULTS = (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL, -signal.SIGFPE)


@dataclass(eq=False, slots=True)
class _Job:
    data: bytes
    future: "Future[Decoded]" = field(default_factory=lambda: Future())
    evidence: int = 0


class DecoderPool:
    """A fixed number of decoder processes; one picture a job.

    A picture whose process dies of a fault, such as a segmentation fault, is `decoder_crashed`. Where it dies otherwise
    the picture is tried again in a fresh one, until two have ended by themselves or four were killed from outside. One
    that takes longer than `timeout_s` is `decode_timeout`. The processes are given nothing of this one's environment
    that may be secret, and from now on cannot read it here either.

    Args:
        processes: how many decoders run side by side.
        timeout_s: seconds of wall time one picture may take, counted from its start.
        memory_bytes: address space a decoder may use beyond what it has after start.
        on_restart: told the cause (`timeout`, `crash`, `killed`) of every process that ended before its time.
        decode: a module's function that reads the bytes, called in the decoder processes.
    """

    def __init__(
        self,
        parameters: Preprocessing,
        limits: DecodeLimits,
        *,
        processes: int,
        timeout_s: float,
        memory_bytes: int,
        on_restart: Callable[[str], None] = lambda cause: None,
        decode: Decode = reading.decode,
    ) -> None:
        keep_to_itself()
        self._arguments = (decode, parameters, limits, memory_bytes)
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._on_restart = on_restart
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._processes: set[DecoderProcess] = set()
        self._failed_starts = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"decoder-{number}", daemon=True) for number in range(processes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, data: bytes) -> "Future[Decoded]":
        """Queues one picture's bytes; the future gives `Decoded` or raises ContentError; closed, UnavailableError."""
        job = _Job(data)
        with self._lock:
            closed = self._closing.is_set()
            if not closed:
                self._queue.put(job)
        if closed:
            job.future.set_exception(_stopped())
        return job.future

    def check(self) -> None:
        """Raises UnavailableError where no process can be started: what is submitted waits for nothing."""
        if self._failed_starts >= START_FAILURES:
            raise UnavailableError("The decoder processes cannot be started; see the log, and restart this process.")

    def close(self) -> None:
        """Ends the processes; what is not decoded yet raises UnavailableError."""
        with self._lock:
            self._closing.set()
            for process in self._processes:
                process.kill()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        """One process after the other, one job after the other."""
        process = self._start()
        while (job := self._queue.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            answer: Decoded | ModerationError | None = None
            while answer is None:
                process = self._usable(process)
                answer = _stopped() if process is None else self._read(job, process)
            if isinstance(answer, ModerationError):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)
        if process is not None:
            self._end(process, None, at_once=True)

    def _usable(self, process: DecoderProcess | None) -> DecoderProcess | None:
        """The process, or a fresh one in its place; None when closed."""
        if process is not None and process in self._processes:
            if process.pictures < PICTURES_A_PROCESS and process.alive():
                return process
            # Ended while it had no work: nobody's doing here.
            self._end(process, None if process.alive() else "killed", at_once=True)
        return self._start()

    def _start(self) -> DecoderProcess | None:
        """A process that is ready, however many attempts that takes; None when closed."""
        while not self._closing.is_set():
            process = None
            try:
                process = DecoderProcess(*self._arguments)
                with self._lock:
                    self._processes.add(process)
                    if self._closing.is_set():
                        process.kill()
                process.wait_ready()
                self._failed_starts = 0
                return process
            except Exception as error:  # whatever it is, the jobs that wait need this thread
                if process is not None:
                    self._end(process, None, at_once=True)
                if not self._closing.is_set():
                    self._failed_starts += 1
                    logger.error("a decoder process did not start: %s: %s", type(error).__name__, error)
                    self._closing.wait(START_PAUSE_S * (self._failed_starts > 1))
        return None

    def _read(self, job: _Job, process: DecoderProcess) -> Decoded | ModerationError | None:
        """The job's answer; None where it has to be tried again. Ends the process where it can go on no more."""
        if len(job.data) >= self._memory_bytes:
            return ContentError("too_large", f"{len(job.data)} bytes are more than a decoder's memory.")
        try:
            return process.read(job.data, self._timeout_s)
        except TimeoutError:
            self._end(process, "timeout", at_once=True)
            return ContentError("decode_timeout", f"Reading the picture took longer than {self._timeout_s:g} s.")
        except DecoderDiedError as error:
            exit_code = self._end(process, None, at_once=False)
            if self._closing.is_set():
                return _stopped()
            self._on_restart("killed" if exit_code in KILLS else "crash")
            job.evidence += _evidence(exit_code)
            logger.warning("a decoder died at work, exit code %s (%s)", exit_code, error)
            if job.evidence < CONDEMNED_AT:
                return None
            return ContentError("decoder_crashed", f"Reading the picture ends its process (exit code {exit_code}).")

    def _end(self, process: DecoderProcess, cause: str | None, *, at_once: bool) -> int | None:
        with self._lock:
            self._processes.discard(process)
        exit_code = process.end(at_once=at_once)
        if cause is not None:
            self._on_restart(cause)
        return exit_code


def _evidence(exit_code: int | None) -> int:
    if exit_code in FAULTS:
        return EVIDENCE_OF_FAULT
    return EVIDENCE_OF_KILL if exit_code in KILLS else EVIDENCE_OF_END


def _stopped() -> UnavailableError:
    return UnavailableError("The decoders were stopped; submit the picture again.")
