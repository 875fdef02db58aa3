"""The table of a GPU's variants, in its dry form: the Triton kernels interpreted, on a thin network."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.worker import REPOSITORY


def test_every_variant_gives_what_float32_gives() -> None:
    """Those of plain torch and of Triton; cuDNN's and the compiler's are held to it where they are timed."""
    pytest.importorskip("triton", reason="Triton, whose interpreter runs its kernels on a CPU, is not installed")
    said = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu_variants", "--dry"],
        cwd=REPOSITORY, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    lines, begun = (
        [json.loads(line) for line in words.splitlines() if line.startswith("{")]
        for words in (said.stdout, said.stderr)
    )
    assert [line["variant"] for line in lines] == ["usual order", "pool first (served)", "8 channels", "Triton"]
    assert all(line["astray"] < 1e-5 for line in lines)
    assert [(line["variant"], line["first_ms"]) for line in lines] == [(e["variant"], e["first_ms"]) for e in begun]
