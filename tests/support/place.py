"""A whole small deployment in one folder: server, content, weights, and the workers started in it."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.pictures import picture
from tests.support.store import colour_store
from tests.support.worker import Broker, WorkerProcess
from worker.client import Moderation
from worker.verdict import Undecided, Verdict

_numbers = itertools.count()


class Place:
    """`broker`, `content`, `store`, `client`; ends what was started when it is left.

    `weights` is where the store is made, a folder beside the others by default.
    """

    def __init__(self, folder: Path, broker: Broker | None = None, weights: Path | None = None) -> None:
        self.folder = folder
        self.broker = broker or Broker(folder / "valkey")
        self.client = Moderation(self.broker.url)
        self.content = folder / "content"
        self.content.mkdir()
        self.weights = weights or folder / "weights"
        self.store = colour_store(self.weights)
        self.workers: list[WorkerProcess] = []

    def start_worker(
        self, *, app: str = "tests.support.tiny_app", forked: bool = True, **settings: str
    ) -> WorkerProcess:
        """Starts a worker process; `settings` are MODERATION_* variables in lower case. `forked`: see WorkerProcess."""
        worker = WorkerProcess(self.broker, self.weights, self.content, self.folder, app=app, forked=forked, **settings)
        self.workers.append(worker)
        return worker

    def add(self, data: bytes | None = None, *, label: str = "approved") -> str:
        """Puts a picture (a fresh one of that label, or these bytes) into the content folder; returns its new ID."""
        content_id = f"c{next(_numbers)}"
        (self.content / content_id).write_bytes(picture(label) if data is None else data)
        return content_id

    def judge(self, ids: str | Iterable[str], timeout_s: float = 60.0) -> dict[str, Verdict | Undecided]:
        """Submits and waits."""
        wanted = [ids] if isinstance(ids, str) else list(ids)
        self.client.submit(wanted)
        return self.client.wait(wanted, timeout_s)

    def entries(self) -> list[str]:
        """The content IDs in the verdict stream, in order."""
        return [document.content_id for _, document in self.client.verdicts()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
        self.client.close()
        self.broker.stop()
