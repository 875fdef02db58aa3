"""Compiled engines and the folder that keeps them: built once, found again, and none that is damaged or another's."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.tuning import Bench, quick
from tests.support.waiting import wait_until
from worker.model import compiled
from worker.model import network as networks
from worker.model.compiled import EngineCache, EngineError
from worker.model.engine import body_key
from worker.model.preprocessing import Preprocessing
from worker.tuner import Tuner


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def test_int8_is_compiled_once_and_found_again(tmp_path: Path) -> None:
    """The real compiler in its own process on the small network: labels as in fp32, and a second start is quick."""
    bench = Bench(tmp_path, check=60)
    tuner = Tuner(bench.classifier, bench.store, bench.cache, on_fallback=lambda *said: bench.fallbacks.append(said))
    version = bench.classifier.version
    engine = tuner._build(version, "int8")
    (library,) = bench.cache.folder.iterdir()  # and nothing half done
    assert bench.cache.folder.stat().st_mode & 0o077 == 0
    frames, labels = bench.check
    for count in (1, 2, 7, 60):
        with torch.inference_mode():
            given = version.head.probabilities(engine.features(frames[:count]))
        assert (given.argmax(dim=1).numpy() == labels[:count]).all()
    started = time.perf_counter()
    EngineCache(bench.cache.folder, bench.store.root).engine(version.manifest, version.body, "int8")
    assert time.perf_counter() - started < 5
    whole = library.read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for damaged in (b"damaged", b"", whole[:-1], whole[: len(whole) // 2], flipped, whole + b"more"):
        library.unlink(missing_ok=True)  # the one in use stays as it is
        library.write_bytes(damaged)
        with pytest.raises(EngineError, match="cannot be loaded"):
            bench.cache.engine(version.manifest, version.body, "int8")
        assert not library.exists()
    with torch.inference_mode():
        assert torch.equal(version.head.probabilities(engine.features(frames)), given)


@pytest.mark.parametrize(("precision", "at_most"), [("bf16", 8), ("int8", 16)])
def test_a_batch_goes_through_a_library_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, at_most: int
) -> None:
    """Of nearly equal size, in channels_last, the rows in their order; a library is given no more than helps it."""
    given: list[Tensor] = []

    def library(path: Path) -> Callable[[Tensor], Tensor]:
        def run(pixels: Tensor) -> Tensor:
            given.append(pixels)
            return pixels.float().amax(dim=(2, 3))

        return run

    monkeypatch.setattr(compiled, "Library", library)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    engine = compiled.CompiledEngine(tmp_path / "none.so", precision, Preprocessing())
    for count in (1, at_most, at_most + 1, 64):
        given.clear()
        frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 224, 224, 3)).copy()
        features = engine.features(frames)
        assert features.shape == (count, 3) and bool((features.diff(dim=0) > 0).all())
        sizes = [len(part) for part in given]
        assert max(sizes) <= at_most and max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-count // at_most)
        assert all(part.is_contiguous(memory_format=torch.channels_last) for part in given)


def test_a_compilation_ends_with_its_worker(tmp_path: Path) -> None:
    """Stopping does not wait for a compiler."""
    bench = Bench(tmp_path)
    cache, failed = bench.cache, []

    def compile_it() -> None:
        try:
            cache.engine(bench.classifier.version.manifest, bench.classifier.version.body, "int8")
        except EngineError as error:
            failed.append(error.reason)

    thread = threading.Thread(target=compile_it)
    thread.start()
    wait_until(lambda: cache._process is not None, "the compiler's process starts")
    cache.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert failed == ["build_failed"]


def test_only_the_last_used_files_stay_in_the_folder(tmp_path: Path) -> None:
    """Of each kind; what a process that was killed was writing goes as well, but not what one may be writing now."""
    bench = Bench(tmp_path, check=60)
    bench.cache.check_folder()
    for number in range(9):
        for name in (f"old{number}.so", f"old{number}.cpu.evidence.safetensors", f".old{number}.tmp"):
            (bench.cache.folder / name).write_bytes(b"x")
            os.utime(bench.cache.folder / name, (1000 + number, 1000 + number))
    (bench.cache.folder / ".new.tmp").write_bytes(b"x")
    bench.tuner.tune(bench.classifier.version)
    (mine,) = bench.cache.folder.glob("tiny-*.evidence.safetensors")
    bench.new_tuner().tune(bench.load(bench.first))
    left = {path.name for path in bench.cache.folder.iterdir()}
    assert left == (
        {mine.name, ".new.tmp"}
        | {f"old{number}.so" for number in range(3, 9)}
        | {f"old{number}.cpu.evidence.safetensors" for number in range(4, 9)}
    )


def test_a_cache_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    """It holds programs."""
    (tmp_path / "engines").mkdir(mode=0o777)
    (tmp_path / "engines").chmod(0o777)
    bench = Bench(tmp_path, check=60)
    bench.tuner.tune(bench.classifier.version)
    assert bench.fallbacks[-1] == ("cpu-int8", "no_cache")
    assert bench.serving == "cpu-fp32"


@pytest.mark.parametrize(
    ("kind", "device", "names"),
    [
        ("COMPILING", "cpu", {"aoti", "compiler", "engine", "int8", "network"}),
        ("CAPTURING", "cuda", {"engine", "graphed", "network"}),
    ],
)
def test_another_release_of_the_code_takes_neither_engine_nor_evidence_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, device: str, names: set[str]
) -> None:
    """Of what compiles or captures, of what a body is, and of how frames become its input."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    bench, where = Bench(tmp_path, check=60), torch.device(device)
    version = bench.classifier.version
    before = bench.cache.key(version.manifest, version.body, "int8", where)
    assert bench.cache.key(version.manifest, version.body, "int8", where) == before
    decides = getattr(compiled, kind)
    assert {source.stem for source in decides} == names
    for position, source in enumerate(decides):
        changed = tmp_path / source.name
        changed.write_bytes(source.read_bytes() + b"# changed\n")
        sources = [*decides]
        sources[position] = changed
        with monkeypatch.context() as patched:
            patched.setattr(compiled, kind, tuple(sources))
            assert bench.cache.key(version.manifest, version.body, "int8", where) != before


def test_another_way_of_decoding_needs_no_other_engine(tmp_path: Path) -> None:
    """What a body makes of frames hangs on their size and scale, not on how a picture became one, or several."""
    bench = Bench(tmp_path)
    manifest = bench.store.manifest(bench.first)
    network = networks.get(manifest.network)
    before = Preprocessing(jpeg_margins=(2.0, 2.0), on_black=False, as_tagged=False, long_from=0.0)
    keys = [
        body_key(network, manifest, {}, how) for how in (Preprocessing(), before, Preprocessing(mean=(0.5, 0.5, 0.5)))
    ]
    assert keys[0] == keys[1] != keys[2]
