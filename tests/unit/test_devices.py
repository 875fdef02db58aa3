"""Which device networks run on, and what it can."""

import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.worker import REPOSITORY
from worker.errors import UsageError
from worker.model import devices

CPU = torch.device("cpu")


def test_cuda_that_is_not_there_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names what to look at: the driver, where torch was built for CUDA, else the build."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for built_for, advice in (("13.0", "built for CUDA 13.0, so see that nvidia-smi"), (None, "install the build")):
        monkeypatch.setattr(torch.version, "cuda", built_for)
        with pytest.raises(UsageError, match=f"MODERATION_DEVICE is cuda but .*{advice}"):
            devices.choose("cuda")
    assert devices.choose("auto") == devices.choose("cpu") == CPU


@pytest.fixture
def convolutions() -> Iterator[Any]:
    """cuDNN's settings of them, for the whole process, put back at the end, and those of products with them."""
    settings: Any = torch.backends.cudnn.conv
    before, products = settings.fp32_precision, torch.get_float32_matmul_precision()
    matmul = torch.backends.cuda.matmul
    reduced = matmul.allow_bf16_reduced_precision_reduction
    yield settings
    torch.backends.cudnn.allow_tf32 = True
    settings.fp32_precision = before
    torch.set_float32_matmul_precision(products)
    matmul.allow_bf16_reduced_precision_reduction = reduced


def test_where_there_is_cuda_it_is_taken_and_float32_is_float32(
    monkeypatch: pytest.MonkeyPatch, convolutions: Any
) -> None:
    """Not TF32, which is what cuDNN's convolutions would be compared in; the CPU where it is asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    convolutions.fp32_precision = "tf32"
    assert devices.choose("cpu") == CPU
    assert convolutions.fp32_precision == "tf32"
    assert devices.choose("auto") == devices.choose("cuda") == torch.device("cuda")
    assert convolutions.fp32_precision == "ieee"


def test_all_is_float32_also_where_nvidias_images_say_otherwise() -> None:
    """Products and sums, too. In a process of its own, for torch reads the variable once; and all its names agree,
    cuDNN's among them."""
    script = """
import torch
from worker.model import devices
torch.cuda.is_available = lambda: True
matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
before = matmul.fp32_precision
devices.choose("cuda")
print(before, matmul.fp32_precision, matmul.allow_tf32, torch.get_float32_matmul_precision())
print(cudnn.conv.fp32_precision, cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction)
"""
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["tf32", "ieee", "False", "highest", "ieee", "False", "False"]


def test_bf16_is_native_only_where_the_hardware_says_so() -> None:
    """The CPU's answer follows its instruction sets, and a device that is not there has none."""
    capabilities = torch.cpu.get_capabilities()
    hardware = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert devices.native_bf16(CPU) is hardware
    assert devices.native_bf16(torch.device("meta")) is False


def test_lack_of_memory_is_found_behind_what_it_led_to() -> None:
    """As where a capture fails for it, and ending that capture fails in turn."""
    error = RuntimeError("operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory.")
    assert devices.lacks_memory(error, torch.device("cuda"))
    error.__context__ = None
    assert not devices.lacks_memory(error, torch.device("cuda"))


def test_lack_of_memory_is_known_by_the_names_that_cudnn_has_for_it() -> None:
    """Which the library itself says, without a GPU: its ninth release renamed them."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None else None
    found = [file for folder in folders or () for file in Path(folder).glob("*/lib/libcudnn_graph.so.*")]
    if not found:
        pytest.skip("cuDNN is not installed: this torch is built without CUDA")
    name_of = ctypes.CDLL(str(found[0])).cudnnGetErrorString
    name_of.restype = ctypes.c_char_p
    names = {name_of(status).decode() for status in range(10_000)}
    lacking = {name for name in names if "ALLOC" in name}
    assert lacking, names
    for name in lacking | (names & {"CUDNN_STATUS_NOT_INITIALIZED"}):
        assert devices.lacks_memory(RuntimeError(f"cuDNN error: {name}"), torch.device("cuda")), name
