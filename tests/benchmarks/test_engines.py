"""The network alone, engine by engine, beside other runtimes on the same tensors and pictures, all in one run.

Images a second of VGG-11 without its last layer. The engines take turns, so that load and clock hit all; the best of
the rounds counts. int8 of both runtimes is calibrated on the same pictures, and how far each strays from fp32 stands
beside its rate. bf16 is measured only where the processor multiplies it: emulated, it would compare emulators.
"""

import copy
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.benchmarks.conftest import Record
from tests.benchmarks.serving import VGG, vgg_version
from tests.support.place import Place
from tests.support.worker import Broker
from trainer.bases import random_base
from worker import memory
from worker.model import check_pictures, devices, int8
from worker.model import engine as engines
from worker.model import network as networks
from worker.model.compiled import EngineCache
from worker.model.engine import EagerEngine, Frames
from worker.model.manifest import Manifest, ManifestDraft
from worker.model.preprocessing import Preprocessing
from worker.model.weights import WeightsStore

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

CPU = torch.device("cpu")
BATCH = 16
LIVE = 2600
TAKES_UP_S = 1800
ROUNDS = 5
Run = Callable[[], Any]


def pictures(count: int, seed: int) -> Frames:
    """Soft shapes with grain."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 8, 8)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, size=(224, 224), mode="bicubic").permute(0, 2, 3, 1).numpy()
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


class Subject:
    """VGG-11 on a random base in a store, its body, and the frames and pixels that everyone is given."""

    def __init__(self, folder: Path) -> None:
        memory.keep_what_was_used()  # as a worker does; the peers' memory that comes from malloc is kept as well
        self.network = networks.get("vgg11")
        base = random_base(self.network, 0)
        head = {name: torch.full(self.network.shapes()[name], 0.01) for name in self.network.head_names()}
        self.body = engines.body_of(self.network, base, CPU, torch.float32)
        self.frames = pictures(BATCH, 0)
        self.pixels = networks.normalise(torch.from_numpy(self.frames), Preprocessing(), torch.float32)
        self.calibration = pictures(32, 1)
        self.store = WeightsStore(folder / "weights")
        draft = ManifestDraft(
            network="vgg11",
            base=self.store.add_base(base, "random"),
            activation_ranges=int8.calibrate(self.body, self.calibration, Preprocessing()),
        )
        self.manifest: Manifest = self.store.publish(draft, head)
        self.key = engines.body_key(self.network, self.manifest, head, Preprocessing())
        self.cache = EngineCache(folder / "engines", self.store.root)
        with torch.inference_mode():
            self.expected = self.body(self.pixels).numpy()

    def astray(self, features: np.ndarray[Any, Any]) -> float:
        """Norm of the difference to fp32 over that of fp32, the pictures' mean taken off both."""
        expected = self.expected - self.expected.mean(axis=0)
        return float(np.linalg.norm(features - features.mean(axis=0) - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    yield Subject(tmp_path_factory.mktemp("engines"))


def _ours(subject: Subject) -> dict[str, Run]:
    runs: dict[str, Run] = {}
    fp32 = EagerEngine(subject.body, CPU, "fp32", Preprocessing())
    plain = copy.deepcopy(subject.body).to(memory_format=torch.contiguous_format)
    runs["torch eager fp32, as in the article"] = lambda: plain(subject.pixels.contiguous()).numpy()
    runs["cpu-fp32"] = lambda: fp32.features(subject.frames).numpy()
    for precision in ("int8", *(["bf16"] if devices.native_bf16(CPU) else [])):
        made = subject.cache.engine(subject.manifest, subject.key, precision)
        runs[f"cpu-{precision}"] = lambda made=made: made.features(subject.frames).numpy()
    return runs


def _onnx(subject: Subject, folder: Path) -> Path:
    path = folder / "body.onnx"
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.onnx.export(
        subject.body, (subject.pixels[:2].contiguous(),), str(path), dynamo=True, dynamic_shapes=({0: batch},)
    )
    return path


def _peers(subject: Subject, folder: Path) -> dict[str, Run]:
    """The other runtimes, each with its own defaults for throughput on two threads' worth of cores."""
    runtime = pytest.importorskip("onnxruntime", reason="the peers are not installed: pip install '.[bench]'")
    ov = pytest.importorskip("openvino", reason="the peers are not installed: pip install '.[bench]'")
    nncf = pytest.importorskip("nncf", reason="the peers are not installed: pip install '.[bench]'")
    pixels = subject.pixels.contiguous().numpy()
    path = _onnx(subject, folder)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    runs: dict[str, Run] = {"ONNX Runtime fp32": lambda: session.run(None, {name: pixels})[0]}
    core = ov.Core()
    model = core.read_model(path)
    items = [
        networks.normalise(torch.from_numpy(subject.calibration[i : i + 1]), Preprocessing(), torch.float32).numpy()
        for i in range(len(subject.calibration))
    ]
    quantised = nncf.quantize(core.read_model(path), nncf.Dataset(items))
    wanted = {"fp32": (model, "f32"), "int8": (quantised, "f32")}
    if devices.native_bf16(CPU):
        wanted["bf16"] = (model, "bf16")
    for precision, (graph, hint) in wanted.items():
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = core.compile_model(graph, "CPU", settings)
        runs[f"OpenVINO {precision}"] = lambda compiled=compiled: compiled(pixels)[0]
    return runs


def _rates(runs: dict[str, Run]) -> dict[str, float]:
    best: dict[str, float] = {}
    with torch.inference_mode():
        for _ in range(1 + ROUNDS):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                seconds = time.perf_counter() - started
                best[name] = min(best.get(name, seconds), seconds)
    return {name: BATCH / seconds for name, seconds in best.items()}


def test_each_engine_against_its_peers(subject: Subject, tmp_path: Path, record: Record) -> None:
    """bf16 at least 0.85 and int8 at least 0.9 of the best peer of that precision, where the processor has it."""
    runs = _ours(subject) | _peers(subject, tmp_path)
    rates = _rates(runs)
    with torch.inference_mode():
        astray = {name: subject.astray(run()) for name, run in runs.items()}
    eager = rates["torch eager fp32, as in the article"]
    for name, rate in rates.items():
        figures = {"images_s": round(rate, 2), "astray": round(astray[name], 4)}
        record(f"forward, {name} / torch eager fp32", rate / eager, "", **figures)
    capabilities = torch.cpu.get_capabilities()
    for precision, needed in (("fp32", 0.9), ("bf16", 0.85), ("int8", 0.9)):
        peers = [rates[name] for name in rates if name in (f"ONNX Runtime {precision}", f"OpenVINO {precision}")]
        if f"cpu-{precision}" not in rates or not peers:
            continue
        share = rates[f"cpu-{precision}"] / max(peers)
        processor = {
            "threads": torch.get_num_threads(),
            "vnni": any("vnni" in name and has for name, has in capabilities.items()),
            "avx2": bool(capabilities.get("avx2")),
        }
        record(f"forward, cpu-{precision} / best peer in {precision}", share, f">= {needed}", **processor)
        assert precision == "fp32" or share >= needed


def test_a_worker_takes_up_int8_by_itself(tmp_path: Path, record: Record) -> None:
    """A real worker with `auto`: serves in fp32, compiles beside it, compares on what it judges, swaps, and is faster.

    No verdict is lost or delayed for it, and each names the engine that made it. The pictures come again under other
    IDs until it serves: what was compared once counts once, and beside a full load some two a second are.
    """
    with Place(tmp_path, Broker(tmp_path / "valkey", appendfsync="everysec")) as place:
        kept = check_pictures.encode(pictures(128, 2), np.zeros(128, np.int64))
        version = vgg_version(place, 0, ranges_of=pictures(64, 1), check=kept)
        place.store.promote(version, by="bench", why="measured")
        originals = [place.content / f"original{number}" for number in range(LIVE)]
        for original, frame in zip(originals, pictures(LIVE, 3), strict=True):
            Image.fromarray(frame).save(original, "JPEG", quality=95)
        worker = place.start_worker(app=VGG, precision="auto").wait_ready()
        started = time.monotonic()
        rates: dict[str, float] = {}
        judged = 0
        while "cpu-int8" not in rates and time.monotonic() - started < TAKES_UP_S:
            ids = [f"p{number}" for number in range(judged, judged + 100)]
            for number, content_id in enumerate(ids, judged):
                os.link(originals[number % LIVE], place.content / content_id)
            before = time.monotonic()
            found = place.judge(ids, 300)
            judged += len(ids)
            engines_of = {document.engine for document in found.values()}
            if len(engines_of) == 1:
                rates[engines_of.pop()] = 100 / (time.monotonic() - before)
        swapped = worker.metric("moderation_weights_info", engine="cpu-int8")
        said = [line for line in worker.log().splitlines() if "int8" in line]
        faster = rates.get("cpu-int8", 0.0) / rates.get("cpu-fp32", 1.0)
        figures = {"seconds": round(time.monotonic() - started), "judged": judged, **rates}
        record("a worker swaps to int8 by itself: int8 / fp32, pictures a second", faster, ">= 1.5", **figures)
        assert swapped == 1, said
        assert len(place.entries()) == len(set(place.entries())) == judged
        assert faster > 1.5
