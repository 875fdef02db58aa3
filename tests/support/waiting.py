"""Waiting for what is waited for, with a limit and a sentence."""

import time
from collections.abc import Callable


def wait_until(reached: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    """Returns once `reached()` is true; fails with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.02)
