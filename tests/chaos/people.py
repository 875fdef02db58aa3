"""Those who change their minds while the service is attacked: people who decide, replace pictures, promote versions.

Each notes what it is about to do before it does it.
"""

import itertools
import random
import threading
import time

import redis

from tests.chaos.actors import PAUSE_S, Actor
from tests.chaos.record import Copy, Notebook, Witness
from tests.chaos.scene import LABELS, Pictures, Versions
from worker.client import Moderation
from worker.errors import UnavailableError, WeightsError


class Moderator(Actor):
    """Decides on pictures of its own, some before they are judged and some after, and on some again; shows some of the
    same bytes under other content IDs, before the decision and after it."""

    def __init__(self, url: str, pictures: Pictures, notes: Notebook, dice: random.Random) -> None:
        super().__init__(dice)
        self._client = Moderation(url)
        self._pictures, self._notes = pictures, notes
        self._numbers = itertools.count()
        self._waiting: list[str] = []
        self._digests: dict[str, str] = {}
        self.copies: dict[str, Copy] = {}
        self.decided: dict[str, list[str]] = {}
        self.unsure: set[str] = set()

    def step(self) -> None:
        """Draws and submits one, then decides on the one before last."""
        content_id = f"k{next(self._numbers)}"
        self._digests[content_id] = self._pictures.draw(content_id, self.dice.choice(LABELS))
        self._notes.intended([content_id])
        if self.insist(lambda: self._client.submit(content_id)):
            self._notes.acknowledged([content_id])
            self._waiting.append(content_id)
        if self._waiting and self.dice.random() < 0.2:
            self._show_again(self.dice.choice(self._waiting))
        if len(self._waiting) > self.dice.randint(0, 3):
            self._decide(self._waiting.pop(0))
        if self.decided and self.dice.random() < 0.2:
            self._decide(self.dice.choice(list(self.decided)))
        if self.decided and self.dice.random() < 0.2:
            self._show_again(self.dice.choice(list(self.decided)))
        self.ending.wait(0.25)

    def _show_again(self, original: str) -> None:
        """The same bytes under another name: once the decision is in force, it is theirs, too."""
        copy = f"{original}-copy{next(self._numbers)}"
        self._pictures.copy(original, copy)
        self._notes.intended([copy])
        self.copies[copy] = Copy(original, known=self._known(original))
        if self.insist(lambda: self._client.submit(copy)):
            self._notes.acknowledged([copy])

    def _known(self, original: str) -> bool:
        """Whether the server says that a person's decision on these bytes is in force; False where it says nothing."""
        try:
            return bool(self._client.redis.hexists("moderation:known", self._digests[original]))
        except redis.exceptions.RedisError:
            return False

    def _decide(self, content_id: str) -> None:
        if content_id in self.unsure:
            return
        before = self.decided.get(content_id, [None])[-1]
        label = self.dice.choice([label for label in LABELS if label != before])
        try:
            self._client.correct(content_id, label, by="chaos")
            self.decided.setdefault(content_id, []).append(label)
        except UnavailableError:  # it may be in or not; nobody decides on it a second time
            self.decided.pop(content_id, None)
            self.unsure.add(content_id)

    def end(self) -> None:
        """Also closes its connection."""
        super().end()
        self._client.close()


class Rewriter(Actor):
    """Puts other bytes in the place of those that were judged, and asks for a rescan: the label must follow them."""

    def __init__(self, url: str, pictures: Pictures, witness: Witness, notes: Notebook, dice: random.Random) -> None:
        super().__init__(dice)
        self._client = Moderation(url)
        self._pictures, self._witness, self._notes = pictures, witness, notes
        self._numbers = itertools.count()
        self.label: dict[str, str] = {}
        self.rewritten = 0

    def step(self) -> None:
        """A new one, or another label for one that was judged."""
        judged = [content_id for content_id in self.label if content_id in self._witness.judged]
        if judged and self.dice.random() < 0.7:
            content_id = self.dice.choice(judged)
            label = self.dice.choice([label for label in LABELS if label != self.label[content_id]])
            self.rewritten += 1
        else:
            content_id, label = f"x{next(self._numbers)}", self.dice.choice(LABELS)
        first = content_id not in self.label
        self._pictures.draw(content_id, label)
        self.label[content_id] = label
        if first:
            self._notes.intended([content_id])
        # Whatever becomes of the end of this run: bytes that were put there are asked about.
        while not self._submitted(content_id, rescan=not first):
            threading.Event().wait(PAUSE_S)
        if first:
            self._notes.acknowledged([content_id])
        self.ending.wait(0.25)

    def _submitted(self, content_id: str, *, rescan: bool) -> bool:
        try:
            self._client.submit(content_id, rescan=rescan)
        except UnavailableError:
            return False
        return True

    def end(self) -> None:
        """Also closes its connection."""
        super().end()
        self._client.close()


class Swapper(Actor):
    """Promotes one version after the other; each is a swap once a verdict by it has been seen."""

    def __init__(self, versions: Versions, witness: Witness, dice: random.Random) -> None:
        super().__init__(dice)
        self._versions, self._witness = versions, witness
        self.swaps = self.refused = 0
        self.took_s: list[float] = []

    def step(self) -> None:
        """Promotes, and waits until work shows it."""
        champion = self._versions.store.champion()
        version = self.dice.choice([known for known in list(self._versions.numbers) if known != champion])
        start = len(self._witness.entries)
        began = time.monotonic()
        try:
            self._versions.store.promote(version, by="chaos", why="swap under load")
        except WeightsError:  # the disk is full: whatever is in service stays
            self.refused += 1
            self.ending.wait(PAUSE_S)
            return

        def seen() -> bool:
            return any(entry.document["weights"] == version for entry in self._witness.entries[start:])

        while not self.ending.is_set():
            if self._witness.wait_for(seen, 0.5):
                self.swaps += 1
                self.took_s.append(time.monotonic() - began)
                return
