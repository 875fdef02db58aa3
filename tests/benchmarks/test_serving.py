"""What the serving side promises in figures: every one a ratio of two things measured in this one run.

Photographs are JPEGs of 1,280 x 960, drawn. VGG-11 stands on the base `random:0`; where the network does not matter
it is faked together with the decoder (`faked_app`). Redis keeps an append-only file, synced once a second. A figure
is recorded before its goal is asked for, so that a goal missed still stands in the table. Where CUDA is found each
test runs in a second form (`forms`), all on the GPU; `-k "not cpu"` leaves the first one out.
"""

import contextlib
import importlib
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.benchmarks.conftest import Record
from tests.benchmarks.forms import BOTH, CPU, WARM, Form, Used
from tests.benchmarks.serving import (
    FAKED,
    VGG,
    drain_rate,
    photographs,
    program,
    quick_place,
    resident_kb,
    same_file,
    server,
    vgg_version,
    warmed,
)  # fmt: skip
from tests.support.place import Place
from tests.support.processes import decoders_of
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY
from trainer.bases import random_base
from worker import cores
from worker.model import devices
from worker.model import network as networks
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits, decode

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

PHOTOGRAPHS = 64
IDS, NOOPS = 16_000, 4_000
SINGLES, SINGLE_TURNS = 40, 3
DECODE_TURNS = 5
BACKLOG = 100_000


@pytest.fixture(scope="module", params=BOTH)
def form(request: pytest.FixtureRequest) -> Form:
    """Which of the two a figure is for."""
    found: Form = request.param
    return found


@pytest.fixture(scope="module")
def vgg_place(form: Form, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place with VGG-11 as the champion and photographs in its content folder; no worker."""
    folder = tmp_path_factory.mktemp(f"vgg-{form.device}")
    with Place(folder, server(folder)) as place:
        place.store.promote(vgg_version(place, 0), by="bench", why="measured")
        photographs(place.content, PHOTOGRAPHS)
        yield place


def ours_and_plain_s(place: Place, form: Form, ids: list[str], *compiled: object) -> tuple[float, float, str | None]:
    """Seconds of the worker in service and of a plain script for the same photographs, the least of some turns each;
    and the worker's engine.

    By turns, for the speed of a shared machine changes within minutes; the worker is given new names each time.
    """
    ours, plain = [], []
    for turn in range(form.turns):
        plain.append(
            float(program("folder", place.weights, place.content, len(ids), form.device, *compiled)["seconds"])
        )
        names = [f"turn{turn}-{content_id}" for content_id in ids]  # sorted behind the photographs
        for content_id, name in zip(ids, names, strict=True):
            os.link(place.content / content_id, place.content / name)
        started_s = time.perf_counter()
        found = place.judge(names, 300)
        ours.append(time.perf_counter() - started_s)
        (engine,) = {document.engine for document in found.values()}
    return min(ours), min(plain), engine


def noop_rate(place: Place, pool: tuple[str, ...]) -> float:
    """Celery's no-op tasks a second in one worker process."""
    os.environ["NOOP_BROKER_URL"] = place.broker.url
    from tests.benchmarks.noop_app import noop

    raw = place.broker.client()
    for number in range(NOOPS):
        noop.delay(f"i{number}")
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.benchmarks.noop_app", "worker", "-l", "ERROR", *pool],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: raw.llen("noop") < NOOPS * 0.9, "the first tasks are taken", 60)
        started_s, left = time.perf_counter(), raw.llen("noop")
        wait_until(lambda: raw.llen("noop") == 0, "the last task is taken", 120)
        return float(left / (time.perf_counter() - started_s))
    finally:
        process.terminate()
        process.wait()


def naive_s(place: Place, form: Form, ids: list[str]) -> float:
    """Seconds from submitting to the last verdict with the naive worker, its children warm: one for each core."""
    os.environ |= {
        "NAIVE_BROKER_URL": place.broker.url, "NAIVE_CONTENT": str(place.content), "NAIVE_DEVICE": form.device
    }  # fmt: skip
    from tests.benchmarks import naive_app

    judge = importlib.reload(naive_app).judge  # it reads the address when it is imported, and may have been before
    raw = place.broker.client()
    children = cores.usable()
    warm = WARM * children
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.benchmarks.naive_app", "worker", "-c", str(children)],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for number in range(warm):
            judge.delay(ids[number % len(ids)])
        wait_until(lambda: raw.xlen("naive:verdicts") == warm, "the naive worker is warm", 180)
        started_s = time.perf_counter()
        for content_id in ids:
            judge.delay(content_id)
        wait_until(lambda: raw.xlen("naive:verdicts") == warm + len(ids), "the naive worker is done", 300)
        return time.perf_counter() - started_s
    finally:
        process.terminate()
        process.wait()


def test_submit_to_verdict_against_the_naive_worker_and_a_plain_script(
    vgg_place: Place, form: Form, record: Record
) -> None:
    """The same photographs through each; and what a worker has resident beside a process with the same network."""
    ids = form.pictures(vgg_place)
    naive = naive_s(vgg_place, form, ids)
    with gpu_mb(form) as on_gpu:
        worker = form.start(vgg_place, warm=9)
        used = Used(vgg_place, worker)
        ours, plain, engine = ours_and_plain_s(vgg_place, form, ids)
        a_picture = used.a_picture(form.turns * len(ids))
    decoders = [resident_kb(pid) // 1024 for pid in decoders_of(worker.process.pid)]
    resident = resident_kb(worker.process.pid)
    worker.stop()
    alone = program("resident", vgg_place.weights, PHOTOGRAPHS, form.device)["kb"]
    per_s = {name: round(len(ids) / s, 2) for name, s in (("ours", ours), ("naive", naive), ("plain", plain))}
    line = f"{form.title}submit to verdict: ours"
    record(f"{line} / naive worker", naive / ours, ">= 2.7", engine=engine, **per_s)
    record(f"{line} / plain script", plain / ours, ">= 0.95", engine=engine, **a_picture)
    record(f"{form.title}resident: worker / one process", resident / alone, "<= 1.3", mb=resident // 1024,
           decoders_mb=decoders, **on_gpu)  # fmt: skip
    assert resident / alone <= 1.3
    assert plain / ours >= 0.95
    if engine == "cpu-fp32":
        pytest.skip(f"2.7 times is asked of bf16; {engine} came to {naive / ours:.2f} times")
    assert naive / ours >= 2.7


@contextlib.contextmanager
def gpu_mb(form: Form) -> Iterator[dict[str, int]]:
    """What the GPU's memory holds more at the end; empty without one."""
    more: dict[str, int] = {}
    free = torch.cuda.mem_get_info()[0] if form.device == "cuda" else 0
    yield more
    if form.device == "cuda":
        more["gpu_mb"] = (free - torch.cuda.mem_get_info()[0]) // 2**20


@pytest.mark.parametrize(("precision", "times_naive"), [("bf16", 2.7), ("int8", 5.0)], ids=["cpu-bf16", "cpu-int8"])
def test_submit_to_verdict_compiled_against_the_naive_worker_and_a_plain_script(
    tmp_path: Path, record: Record, precision: str, times_naive: float
) -> None:
    """The worker compiles its engine first; the plain script then takes the same one from the same folder."""
    if precision == "bf16" and not devices.native_bf16(torch.device("cpu")):
        pytest.skip("this processor does not multiply bfloat16, and a worker refuses to emulate it")
    with Place(tmp_path, server(tmp_path)) as place:
        seen = np.random.default_rng(1).integers(0, 256, (64, 224, 224, 3), np.uint8)
        place.store.promote(vgg_version(place, 0, ranges_of=seen), by="bench", why="measured")
        warm, ids = photographs(place.content, WARM, seed=9), CPU.pictures(place)
        worker = place.start_worker(app=VGG, precision=precision).wait_ready()
        said = f"serving with cpu-{precision} now"  # in bf16 it serves before, too, and not compiled
        wait_until(lambda: said in worker.log(), "the compiled engine", 1500)
        warmed(place, worker, warm)
        for content_id in warm:
            (place.content / content_id).unlink()
        ours, plain, engine = ours_and_plain_s(place, CPU, ids, place.folder / "engines", precision)
        worker.stop()
        assert engine == f"cpu-{precision}"
        naive = naive_s(place, CPU, ids)
    per_s = {name: round(len(ids) / s, 2) for name, s in (("ours", ours), ("naive", naive), ("plain", plain))}
    record(f"submit to verdict: ours in {precision} / naive worker in fp32", naive / ours, f">= {times_naive}", **per_s)
    record(f"submit to verdict: ours / plain script, both in {precision}", plain / ours, ">= 0.95")
    assert plain / ours >= 0.95
    assert naive / ours >= times_naive


def test_ids_a_second_against_celery_tasks_that_do_nothing(tmp_path: Path, form: Form, record: Record) -> None:
    """One worker process each; Celery in the fastest of its pools. Also: what Redis does for an ID."""
    with quick_place(tmp_path) as place:
        pools = {"threads": ("-P", "threads", "-c", "4"), "solo": ("-P", "solo"), "prefork": ("-c", "1")}
        noop = {name: noop_rate(place, pool) for name, pool in pools.items()}
        worker = place.start_worker(app=FAKED, device=form.device)
        warmed(place, worker, same_file(place, 1000, "warm"))
        raw = place.broker.client()
        raw.config_resetstat()
        ours = drain_rate(place, same_file(place, IDS, "id"))
        stats = raw.info("commandstats").items()
    calls = {name.removeprefix("cmdstat_"): value["calls"] / IDS for name, value in stats}
    # What a script runs is counted in it: the script's own call stands for all of it.
    sent = sum(calls.get(name, 0.0) for name in ("evalsha", "xreadgroup", "mget", "xclaim", "script|exists"))
    micros = sum(value["usec"] for name, value in stats if name.removeprefix("cmdstat_") in _SENT) / IDS
    record(f"{form.title}redis: round trips an ID", sent, "<= 0.5", scripts=round(calls.get("evalsha", 0.0), 3))
    record(f"{form.title}redis: microseconds of its one thread an ID", micros, "-", ids_a_second=round(1e6 / micros))
    fastest = max(noop.values())
    record(f"{form.title}IDs a second: ours / Celery no-op tasks", ours / fastest, ">= 8", ours=round(ours),
           **{name: round(rate) for name, rate in noop.items()})  # fmt: skip
    assert sent <= 0.5
    assert ours / fastest >= 8


_SENT = ("evalsha", "xreadgroup", "mget", "xclaim", "xpending")


def test_throughput_is_flat_to_a_backlog_of_a_hundred_thousand(tmp_path: Path, form: Form, record: Record) -> None:
    """Ten thousand IDs judged while about 1,000 wait, against ten thousand while 100,000 to 90,000 wait."""
    with quick_place(tmp_path) as place:
        worker = place.start_worker(app=FAKED, device=form.device)
        warmed(place, worker, same_file(place, 1000, "warm"))
        raw = place.broker.client()
        few = same_file(place, 11_000, "few")
        place.client.submit(few[:1000])
        started_s = time.perf_counter()
        for at in range(1000, len(few), 250):
            wait_until(lambda: raw.xlen("moderation:uploads") <= 1000, "room for more", 60)
            place.client.submit(few[at : at + 250])
        at_1000 = (len(few) - 1000) / (time.perf_counter() - started_s)
        wait_until(lambda: raw.xlen("moderation:uploads") == 0, "the intake is empty", 60)
        place.client.submit(same_file(place, BACKLOG, "many"))
        start, started_s = raw.xlen("moderation:uploads"), time.perf_counter()
        wait_until(lambda: raw.xlen("moderation:uploads") <= start - 10_000, "the first ten thousand", 120)
        at_100000 = (start - raw.xlen("moderation:uploads")) / (time.perf_counter() - started_s)
    record(
        f"{form.title}backlog: IDs/s with 100,000 waiting / with 1,000", at_100000 / at_1000, ">= 0.9", waiting=start
    )
    assert at_100000 / at_1000 >= 0.9


def test_one_picture_on_an_idle_worker(vgg_place: Place, form: Form, record: Record) -> None:
    """Submit to verdict as the client sees it, one at a time, against fetch, decode and forward in one process.

    By turns, as above; the worker has nothing to do while the process runs.
    """
    ids = photographs(vgg_place.content, SINGLES, seed=3)
    folder = vgg_place.folder / "singles"
    folder.mkdir()
    for content_id in ids:
        os.link(vgg_place.content / content_id, folder / content_id)
    worker = form.start(vgg_place, warm=4)
    alone: list[float] = []
    ours: list[float] = []
    for turn in range(SINGLE_TURNS):
        alone += program("single", vgg_place.weights, folder, SINGLES, form.device)["seconds"]
        for content_id in ids:
            name = f"turn{turn}-{content_id}"
            os.link(vgg_place.content / content_id, vgg_place.content / name)
            started_s = time.perf_counter()
            vgg_place.judge(name)
            ours.append(time.perf_counter() - started_s)
    worker.stop()
    for name, share in (("p50", 50), ("p99", 99)):
        mine, plain = np.percentile(ours, share), np.percentile(alone, share)
        record(
            f"{form.title}idle, one picture, {name}: ours / in process",
            mine / plain,
            "<= 1.3",
            ms=round(1000 * mine, 1),
        )
    assert np.percentile(ours, 50) / np.percentile(alone, 50) <= 1.3
    assert np.percentile(ours, 99) / np.percentile(alone, 99) <= 1.3


def test_decode_and_resize_against_to_tensor_then_resize(tmp_path: Path, record: Record) -> None:
    """One thread, photographs of 720 to 1,600 pixels, by turns, the least of each; the labels of a VGG-11 on both
    ways' pixels are compared."""
    rng = np.random.default_rng(7)
    data = []
    for number, side in enumerate((720, 960, 1200, 1600) * 6):
        path = tmp_path / f"{number}.jpg"
        noise = rng.integers(0, 256, (9, 12, 3), np.uint8)
        image = Image.fromarray(noise).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
        grain = np.asarray(image, np.int16) + rng.integers(-12, 13, (side, side * 4 // 3, 1), np.int16)
        Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(path, "JPEG", quality=88)
        data.append(path)
    article = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Resize(256, antialias=True), v2.CenterCrop(224)]
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        article_s, ours_s = math.inf, math.inf
        for _ in range(DECODE_TURNS):
            started_s = time.perf_counter()
            theirs = []
            for path in data:
                with Image.open(path) as image:
                    theirs.append(article(image.convert("RGB")))
            article_s = min(article_s, time.perf_counter() - started_s)
            started_s = time.perf_counter()
            ours = [decode(path.read_bytes(), Preprocessing(), DecodeLimits()).frames[0] for path in data]
            ours_s = min(ours_s, time.perf_counter() - started_s)
    finally:
        torch.set_num_threads(threads)
    network = networks.get("vgg11")
    module = network.build()
    torch.manual_seed(0)
    torch.nn.init.zeros_(module.classifier[6].bias)
    module.load_state_dict(random_base(network, 0), strict=False)
    both = [torch.stack([torch.from_numpy(f) for f in ours]), (torch.stack(theirs) * 255).round().byte()]
    if both[1].shape[1] == 3:
        both[1] = both[1].permute(0, 2, 3, 1)
    with torch.inference_mode():
        labels = [
            module.eval()(networks.normalise(frames, Preprocessing(), torch.float32)).argmax(1) for frames in both
        ]
    difference = (both[0].int() - both[1].int()).abs().float()
    flips = int((labels[0] != labels[1]).sum())
    record("decode + resize, one core: ours / ToTensor then Resize", article_s / ours_s, ">= 4",
           per_s=round(len(data) / ours_s), article_per_s=round(len(data) / article_s),
           mean_difference=round(float(difference.mean()), 2))  # fmt: skip
    record("decode + resize: labels that differ", flips, "0", pictures=len(data))
    assert flips == 0
    assert article_s / ours_s >= 4


def test_a_champion_swap_delays_no_verdict_beyond_a_batch(vgg_place: Place, form: Form, record: Record) -> None:
    """The gap before the first batch by the new version, or before the one in work meanwhile, less the usual gap. On a
    GPU, where a batch takes milliseconds, all gaps of the second before it.

    The version was published before, and the champion's file is replaced as on a shared volume: what publishing and
    promoting cost on these cores (half a gigabyte is hashed) is not the worker's.
    """
    version = vgg_version(vgg_place, 1)
    worker = form.start(vgg_place, warm=5, max_batch="4")
    # A worker looks for another champion once a second: there must be work for some on a GPU, too.
    ids = form.pictures(vgg_place, PHOTOGRAPHS if form.device == "cpu" else 3 * PHOTOGRAPHS, seed=6)
    vgg_place.client.submit(ids)
    vgg_place.client.wait(ids[:8], 60)
    named = vgg_place.weights / "champion.new"
    named.write_text(f"{version}\n")
    named.replace(vgg_place.weights / "champion")
    found = vgg_place.client.wait(ids, 120)
    worker.stop()
    moments = sorted((found[i].decided_at.timestamp(), found[i].weights) for i in ids)
    batches = sorted({moment for moment, _ in moments})
    # On a CPU verdicts of one batch are milliseconds apart.
    ends = np.array([b for a, b in zip([0.0, *batches], batches, strict=False) if b - a > form.apart_s])
    gaps = np.diff(ends)
    usual = statistics.median(gaps)
    assert len({weights for _, weights in moments}) == 2
    first = min(moment for moment, weights in moments if weights == version)
    swapped = int((ends <= first).sum()) - 1  # that batch
    earliest = swapped - 2 if form.device == "cpu" else min(swapped - 2, int((ends < first - 1).sum()))
    assert earliest >= 0, "the swap came before there was a usual gap"
    around, elsewhere = gaps[earliest:swapped], np.delete(gaps, np.arange(earliest, swapped))
    record(f"{form.title}champion swap: longer gap around it less the usual, seconds", max(around) - usual, "<= 0.1",
           usual_s=round(usual, 4), longest_elsewhere=round(max(elsewhere) - usual, 3))  # fmt: skip
    assert max(around) - usual <= 0.1


def test_start_to_first_verdict(vgg_place: Place, form: Form, record: Record) -> None:
    """From starting the process to a verdict on what waited for it, the page cache warm, least of three starts."""
    loads, starts = [], []
    for round_ in range(3):
        started_s = time.perf_counter()
        program("weights", vgg_place.weights)
        loads.append(time.perf_counter() - started_s)
        (content_id,) = photographs(vgg_place.content, 1, seed=20 + round_)
        vgg_place.client.submit(content_id)
        started_s = time.perf_counter()
        # Not forked from one that has imported everything, for the imports are a part of it.
        worker = vgg_place.start_worker(app=VGG, forked=False, device=form.device, precision=form.precision)
        vgg_place.client.wait([content_id], 120)
        starts.append(time.perf_counter() - started_s)
        worker.stop()
    ratio = min(starts) / min(loads)
    record(
        f"{form.title}start to first verdict / import torch + read weights", ratio, "< 2", start_s=round(min(starts), 2)
    )
    assert ratio < 2
