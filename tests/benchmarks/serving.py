"""What the serving benchmarks share: places with a real network or none, and clocks on a worker's work."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support.debian_redis import DebianRedis
from tests.support.pictures import photograph
from tests.support.place import Place
from tests.support.store import publish_colours
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, Broker, ValkeyServer, WorkerProcess
from trainer.bases import random_base
from worker.model import engine as engines
from worker.model import int8
from worker.model import network as networks
from worker.model.engine import Frames
from worker.model.manifest import ManifestDraft
from worker.model.preprocessing import Preprocessing

FAKED = "tests.benchmarks.faked_app"
VGG = "worker.app"
LINKS = 10_000


def vgg_version(place: Place, seed: int, ranges_of: Frames | None = None, check: bytes | None = None) -> str:
    """Publishes VGG-11 on the base `random:0` with a random last layer; returns the version's id.

    With `ranges_of`, frames to calibrate on, it may be served in int8; `check` are pictures to compare engines on.
    """
    network = networks.get("vgg11")
    tensors = random_base(network, 0)
    base = place.store.add_base(tensors, "random:0")
    generator = torch.Generator().manual_seed(seed)
    head = {
        "classifier.6.weight": torch.randn((3, 4096), generator=generator) / 64,
        "classifier.6.bias": torch.zeros(3),
    }
    ranges = {}
    if ranges_of is not None:
        body = engines.body_of(network, tensors, torch.device("cpu"), torch.float32)
        ranges = int8.calibrate(body, ranges_of, Preprocessing())
    draft = ManifestDraft(
        network="vgg11",
        base=base,
        activation_ranges=ranges,
        check_pictures=place.store.add_check_pictures(check) if check else None,
        provenance={"by": "bench"},
    )
    return place.store.publish(draft, head).id


def photographs(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Writes JPEGs of 1,280 x 960 named by their content IDs."""
    rng = np.random.default_rng(seed)
    ids = [f"photo{seed}x{number:04d}" for number in range(count)]
    for number, content_id in enumerate(ids):
        (folder / content_id).write_bytes(photograph(rng, number % 3))
    return ids


def same_file(place: Place, count: int, prefix: str) -> list[str]:
    """IDs that all lie there: files of 50 KB, each under many names, for a disk holds only so many links to one."""
    ids = [f"{prefix}{number}" for number in range(count)]
    for number, content_id in enumerate(ids):
        if number % LINKS == 0:
            original = place.content / content_id
            original.write_bytes(os.urandom(50_000))
        else:
            os.link(original, place.content / content_id)
    return ids


def server(folder: Path) -> Broker:
    """PyPI's Valkey where it is installed, else this machine's redis-server; its file is written once a second."""
    return (Broker if ValkeyServer else DebianRedis)(folder / "valkey", appendfsync="everysec")


@contextmanager
def quick_place(folder: Path) -> Iterator[Place]:
    """A place whose pictures are 8 x 8 pixels for the tiny network."""
    with Place(folder, server(folder)) as place:
        publish_colours(place.store, preprocessing=Preprocessing(resize=8, crop=8), promote=True)
        yield place


def program(*words: object, **environment: str) -> Any:
    """What `plain_folder` prints, run as a program of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.plain_folder", *map(str, words)],
        cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def drain_rate(place: Place, ids: list[str]) -> float:
    """Submits, and returns IDs a second until the intake is empty; all of them have one entry then."""
    raw = place.broker.client()
    before = raw.xlen("moderation:verdicts")
    started_s = time.perf_counter()
    place.client.submit(ids)
    wait_until(lambda: raw.xlen("moderation:uploads") == 0, "the intake is empty", 600)
    seconds = time.perf_counter() - started_s
    assert raw.xlen("moderation:verdicts") - before == len(ids)
    return len(ids) / seconds


def resident_kb(pid: int) -> int:
    """VmRSS of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def warmed(place: Place, worker: WorkerProcess, ids: list[str]) -> None:
    """Judges some pictures before anything is timed."""
    worker.wait_ready()
    place.judge(ids, 120)
