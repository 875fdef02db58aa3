"""Tells the person who waits how far a run is, on stderr. Knows nothing of pictures, weights or training.

A progress bar on a terminal, one line now and then elsewhere: a log file of a scheduled job stays readable.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S: Final = 10.0
"""Seconds between two progress lines where no terminal is attached."""


class Reporter:
    """Writes sentences and progress to one stream; stdout stays free for the result."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._console = Console(file=self._stream, highlight=False)

    def say(self, sentence: str) -> None:
        """Print one line."""
        self._console.print(sentence, markup=False, soft_wrap=True)

    @contextmanager
    def track(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show progress towards `total` steps of `what`; yields the function to call with each count done."""
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self._console) as bar:
                task = bar.add_task(what, total=total)
                yield lambda count: bar.update(task, advance=count)
        else:
            lines = _Lines(self.say, what, total)
            yield lines.advance
            lines.end()


class _Lines:
    """Progress as plain lines, at most one in LINE_EVERY_S, and one at the end."""

    def __init__(self, say: Callable[[str], None], what: str, total: int) -> None:
        self._say, self._what, self._total = say, what, total
        self._done = 0
        self._started_s = self._last_s = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now_s = time.monotonic()
        if now_s - self._last_s >= LINE_EVERY_S:
            self._last_s = now_s
            self._say(f"{self._what}: {self._done} of {self._total}, {now_s - self._started_s:.0f} s")

    def end(self) -> None:
        seconds = time.monotonic() - self._started_s
        self._say(f"{self._what}: {self._done} of {self._total} done in {seconds:.1f} s")
