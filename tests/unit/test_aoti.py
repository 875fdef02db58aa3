"""A compiled network runs through its C interface, without Python's lock; the real compiler makes it."""

import json
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.waiting import wait_until
from worker.model.aoti import Library, extract

WIDTH = 1500


@pytest.fixture(scope="module")
def heavy() -> nn.Module:
    """A tenth of a second a pass and more, nearly all of it in products of matrices."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(8)]).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def library(heavy: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("compiled")
    shapes = ({0: torch.export.Dim("rows", min=1, max=4096)},)
    program = torch.export.export(heavy, (torch.zeros(4, WIDTH),), dynamic_shapes=shapes)
    archive = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(folder / "network.pt2"),
        inductor_configs={"compile_threads": 1, "aot_inductor.precompile_headers": False},
    )
    extract(Path(archive), folder / "network.so")
    return Library(folder / "network.so")


def test_it_gives_what_the_module_gives_for_any_number_of_rows(heavy: nn.Module, library: Library) -> None:
    for rows in (1, 3, 64):
        given = torch.rand(rows, WIDTH)
        with torch.inference_mode():
            made = library(given)
            assert torch.allclose(made, heavy(given), atol=1e-5)
        assert float(given.sum()) > 0  # the input is still its owner's


def test_other_threads_go_on_while_it_runs(library: Library) -> None:
    """A pass takes many times longer than Python's switch between threads; theirs is never held up by all of it."""
    rows = torch.rand(4000, WIDTH)
    moments: list[float] = []
    passes: list[tuple[float, float]] = []
    done = threading.Event()

    def run() -> None:
        for _ in range(3):
            started = time.monotonic()
            library(rows)
            passes.append((started, time.monotonic()))
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not done.wait(0.001):
        moments.append(time.monotonic())
    thread.join()
    for started, ended in passes:
        within = sum(started < moment < ended for moment in moments)
        assert within >= 10, f"{within} looks in a pass of {ended - started:.3f} s"


def test_what_does_not_fit_is_an_error_and_the_next_pass_goes_on(library: Library) -> None:
    with pytest.raises(RuntimeError, match="the compiled network failed"):
        library(torch.rand(5000, WIDTH)[:, : WIDTH // 2].contiguous())
    assert library(torch.rand(2, WIDTH)).shape == (2, WIDTH)


def test_an_archive_that_needs_torchs_own_loader_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "network.pt2", "w") as packed:
        packed.writestr(
            "network/a.wrapper.json", json.dumps({"nodes": [{"node": {"target": "quantized::max_pool2d"}}]})
        )
        packed.writestr("network/a.wrapper.so", b"")
    with pytest.raises(ValueError, match=r"without a C interface: \['quantized::max_pool2d'\]"):
        extract(tmp_path / "network.pt2", tmp_path / "network.so")


def test_memory_of_inputs_and_results_is_given_back(library: Library) -> None:
    """Handles cross the C interface; one of those that is not let go of would keep 3 MB a pass."""

    def resident_mb() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def passes(count: int) -> None:
        for _ in range(count):
            library(torch.rand(500, WIDTH))

    passes(3)
    before = resident_mb()
    passes(30)
    wait_until(lambda: resident_mb() - before < 40, f"memory is near {before:.0f} MB again", 10)
