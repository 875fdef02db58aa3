"""A retrain job with the tiny network in VGG-11's place, run here or in a process that is killed at a named moment.

A moment is what the job is about to do to the file system, as Python's audit hooks tell it: no part is replaced.
"""

import hashlib
import multiprocessing
import os
import re
import signal
import sys
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.worker import Broker
from tests.tiny_network import TINY
from trainer.asked import Asked
from trainer.plan import Plan
from trainer.progress import Reporter
from trainer.retrain import Job, retrain
from trainer.retrain_metrics import reported
from trainer.spots import label_folders
from worker.client import Moderation
from worker.content import ContentStore
from worker.model import network
from worker.model.labels import LABELS
from worker.model.weights import WeightsStore

PATIENCE_S = 120.0
PER_LABEL = 24


@dataclass(frozen=True)
class Moment:
    """The `count`th time, after a rename to what `after` matches, that a rename (which replaces or adds) or a removal
    concerns a path that `where` matches. `early` ones are met in the first night of an empty store, too."""

    name: str
    event: str
    where: str
    count: int = 1
    after: str = ""
    early: bool = True


PICTURE = r"/interim/\w+/\w+\.\w+$"

MOMENTS = (
    Moment("before the first picture is in place", "os.rename", PICTURE),
    Moment("between two pictures", "os.rename", PICTURE, 2),
    Moment("a picture replaced, the one before not yet removed", "os.remove", PICTURE, early=False),
    Moment("all pictures in place, the cursor not yet", "os.rename", "/data/retrain.json"),
    Moment("the cursor in place, no feature yet", "os.rename", "/cache/"),
    Moment("some features kept", "os.rename", ".safetensors", 2),
    Moment("the version about to appear", "os.rename", "/versions/"),
    Moment("the version there, not yet the challenger", "os.rename", "/weights/challenger", early=False),
    Moment("the promotion on record, not yet in force", "os.rename", "/weights/champion"),
    Moment("promoted, the ledger not yet", "os.rename", "/data/retrain.json", after="/weights/champion"),
    Moment("all done but the metrics", "os.rename", "retrain.prom"),
)


@dataclass(frozen=True)
class Site:
    """Where all lies: `data`, `content`, `weights`, `cache` and `retrain.prom` in `folder`."""

    folder: Path
    redis_url: str
    margin: float = 0.9
    always: bool = False
    asked: Asked = field(default_factory=Asked)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def store(self) -> WeightsStore:
        return WeightsStore(self.folder / "weights")

    @property
    def metrics(self) -> Path:
        return self.folder / "retrain.prom"

    def run(self, pushgateway: str | None = None) -> str:
        """The job, in this process; returns its outcome."""
        network.register(TINY)
        plan = Plan(
            train=label_folders(self.data, "train"),
            test=label_folders(self.data, "test"),
            by="cron",
            base="random:0",
            network="tiny",
            device="cpu",
            cache=self.folder / "cache",
            asked=self.asked,
        )
        reporter = Reporter()
        content = ContentStore(f"file://{self.folder}/content/{{content_id}}", max_bytes=10**6, timeout_s=5)
        with reported(self.metrics, pushgateway, reporter.say) as record:
            job = Job(self.data, plan, margin=self.margin, always=self.always)
            retrain(job, self.store, Moderation(self.redis_url), content, reporter, record)
        return record.outcome


class Moderators:
    """Draws pictures into the content folder, decides on them, and knows what was decided last."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self._content, self._broker = folder / "content", broker
        self._content.mkdir(exist_ok=True)
        self._rng = np.random.default_rng(7)
        self.truth: dict[str, tuple[str, str]] = {}

    def draw(self, content_id: str, label: str) -> str:
        """A noisy picture in the label's colour; returns its SHA-256."""
        colour = np.full((20, 24, 3), 90.0)
        colour[..., LABELS.index(label)] += 60
        pixels = np.clip(colour + self._rng.normal(0, 25, colour.shape), 0, 255)
        path = self._content / content_id
        Image.fromarray(pixels.astype(np.uint8)).save(path, "PNG")
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def decide(self, content_id: str, label: str, *, redrawn: bool = True) -> None:
        """A correction of what a verdict was on: of the bytes that are there, or of others, which are drawn first."""
        digest = self.draw(content_id, label) if redrawn else self.truth[content_id][1]
        fields = {"content_id": content_id, "label": label, "by": "ada", "content_sha256": digest}
        self._broker.client().xadd("moderation:corrections", fields)
        self.truth[content_id] = (label, digest)

    def first_night(self) -> None:
        """PER_LABEL of each label."""
        for label in LABELS:
            for number in range(PER_LABEL):
                self.decide(f"{label[:2]}{number}", label)

    def second_night(self) -> None:
        """New ones, some decided otherwise, some replaced by other content under their ID."""
        for label in LABELS:
            self.decide(f"{label[:2]}new", label)
        self.decide("ap0", "risked", redrawn=False)
        self.decide("ap1", "not_suitable", redrawn=True)
        self.decide("ri0", "approved", redrawn=False)


def _die_at(site: Site, moment: Moment) -> None:
    """Runs the job in a process whose life ends at `moment`."""
    seen, begun = 0, not moment.after

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen, begun
        if event not in ("os.rename", "os.remove"):
            return
        path = os.fsdecode(arguments[1 if event == "os.rename" else 0])
        if begun and event == moment.event and re.search(moment.where, path):
            seen += 1
            if seen == moment.count:
                os.kill(os.getpid(), signal.SIGKILL)
        begun = begun or (event == "os.rename" and re.search(moment.after, path) is not None)

    sys.addaudithook(watch)
    site.run()


def killing() -> ForkServerContext:
    """Where processes come from that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.retraining"])
    return context


def killed_at(site: Site, moment: Moment, processes: ForkServerContext) -> bool:
    """Whether the job, run in a process of its own, reached `moment` and died there."""
    process = processes.Process(target=_die_at, args=(site, moment))
    process.start()
    process.join(PATIENCE_S)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"the run that was to die {moment.name} did neither that nor end")
    return process.exitcode == -signal.SIGKILL
