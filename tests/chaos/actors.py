"""What all who use the service while it is attacked have in common: a thread of their own, and patience.

None of them knows of any attack; where the server does not answer they try again, as the contract tells them to.
"""

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

import redis

from worker.errors import UnavailableError

PAUSE_S = 0.1


class Actor(ABC):
    """A thread that takes step after step until it is told to end; what it raises fails the test at the end."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.ending = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def end(self) -> None:
        """Ends after the step in work."""
        self.ending.set()
        self._thread.join(60)
        if self.error is not None:
            raise self.error
        assert not self._thread.is_alive(), f"{type(self).__name__} does not end"

    @abstractmethod
    def step(self) -> None:
        """What it does; again and again."""

    def insist(self, call: Callable[[], object]) -> bool:
        """Calls until the server has answered; False where that did not happen before the end."""
        while not self.ending.is_set():
            try:
                call()
                return True
            except (UnavailableError, redis.exceptions.RedisError):
                self.ending.wait(PAUSE_S)
        return False

    def _run(self) -> None:
        try:
            while not self.ending.is_set():
                self.step()
        except BaseException as error:
            self.error = error
