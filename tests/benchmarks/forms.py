"""The two forms of the serving table: a worker on the CPU, and one on a GPU. Who is compared runs on the same device.

A GPU is so quick that a figure needs more pictures there: the same photographs under other names, for drawing them
takes longer than judging them.
"""

import os
from dataclasses import dataclass
from typing import Final

import pytest
import torch

from tests.benchmarks.serving import VGG, photographs, warmed
from tests.support.place import Place
from tests.support.processes import decoders_of
from tests.support.waiting import wait_until
from tests.support.worker import WorkerProcess
from worker.model import devices

WARM: Final = 4


def _lacks() -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA device: these figures are a GPU's"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        return f"torch {torch.__version__} is older than 2.11, which a worker needs"
    if not devices.native_bf16(torch.device("cuda")):
        return "this GPU does not multiply bf16 natively: no figure here is promised for it"
    return None


on_a_gpu = pytest.mark.skipif((LACKS := _lacks()) is not None, reason=str(LACKS))


@dataclass(frozen=True)
class Form:
    """`precision`: what a worker serves VGG-11 with; `names`: for each photograph; `turns`: of which the least counts;
    `apart_s`: between two batches, at least; `title`: before each line of the table."""

    device: str
    precision: str
    photographs: int
    names: int
    turns: int
    apart_s: float
    title: str

    def pictures(self, place: Place, count: int | None = None, seed: int = 0) -> list[str]:
        """Content IDs of `count` photographs, each under as many names as it takes."""
        ids = photographs(place.content, count or self.photographs, seed)
        return ids if self.names == 1 else under_other_names(place, ids, self.names)

    def start(self, place: Place, *, warm: int, **settings: str) -> WorkerProcess:
        """A worker that serves with the engine it is to be measured with, warm; `warm` seeds the pictures for that."""
        worker = place.start_worker(app=VGG, device=self.device, precision=self.precision, **settings)
        if self.device == "cuda":
            wait_until(lambda: "serving with cuda-bf16 now" in worker.log(), "graphs to be captured", 300)
        warmed(place, worker, photographs(place.content, WARM, seed=warm))
        return worker


CPU: Final = Form("cpu", "fp32", photographs=192, names=1, turns=6, apart_s=0.03, title="")
CUDA: Final = Form("cuda", "bf16", photographs=128, names=32, turns=3, apart_s=0.0, title="GPU: ")
BOTH: Final = [pytest.param(CPU, id="cpu"), pytest.param(CUDA, id="cuda", marks=on_a_gpu)]


def under_other_names(place: Place, ids: list[str], times: int) -> list[str]:
    """Each picture under so many IDs more, none twice in a row."""
    names = []
    for turn in range(times):
        for content_id in ids:
            names.append(f"{content_id}x{turn}")
            os.link(place.content / content_id, place.content / names[-1])
    return names


class Used:
    """What a worker, its decoders and its server have used since this was made."""

    def __init__(self, place: Place, worker: WorkerProcess) -> None:
        self._place, self._worker = place, worker
        self._before = self._now()

    def a_picture(self, count: int) -> dict[str, float]:
        """Milliseconds of a core for each of `count` pictures, and how many there were in a batch."""
        used = {name: value - self._before[name] for name, value in self._now().items()}
        batches, images = used.pop("batches"), used.pop("images")
        each = {f"{name}_ms": round(1000 * seconds / count, 3) for name, seconds in used.items()}
        return {"images_a_batch": round(images / max(1.0, batches), 1), **each}

    def _now(self) -> dict[str, float]:
        server = self._place.broker.client().info("cpu")
        return {
            "worker": _cores_s(self._worker.process.pid),
            "decoders": sum(map(_cores_s, decoders_of(self._worker.process.pid))),
            "server": server["used_cpu_user"] + server["used_cpu_sys"],
            "images": self._worker.metric("moderation_batch_images_sum"),
            "batches": self._worker.metric("moderation_batch_images_count"),
        }


def _cores_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
