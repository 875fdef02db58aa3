"""`celery worker` processes that need not import torch first: forked from one process that has.

What runs is Celery's own command line, in a process of its own, as `python -m celery` runs it; only the four seconds
of imports before it are spared, of every test that starts one and of those that kill a hundred.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

PRELOADED = ["celery.__main__", "celery.bin.worker", "worker.app", "worker.service", "tests.tiny_network"]


@cache
def _processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _live(words: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
    """In the new process: takes on directory, environment and output, and becomes Celery's command line."""
    with open(os.devnull, "rb") as nothing, log.open("wb") as said:
        os.dup2(nothing.fileno(), 0)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["celery", *words]
    from celery.__main__ import main

    raise SystemExit(main())


class ForkedProcess:
    """As much of subprocess.Popen as tests use."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        self._process = _processes().Process(target=_live, args=(words, folder, environment, log))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it lives."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code once it has one. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("celery worker", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal, where it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)
