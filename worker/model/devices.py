"""Which device networks run on, and what it can. Knows no networks, stores or settings."""

import torch

from worker.errors import UsageError


def choose(name: str) -> torch.device:
    """The device for `cpu`, `cuda`, or `auto`, which is CUDA where torch finds a device.

    On CUDA, float32 is computed as float32 from now on. Raises UsageError where CUDA is asked for and there is none.
    """
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise UsageError(f"MODERATION_DEVICE is cuda but torch finds no CUDA device: {_advice()}, or set cpu.")
        return torch.device("cpu")
    # cuDNN's own default for convolutions, TF32, keeps 10 bits of 23: no measure for what bf16 is compared with.
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # mypy sees a file, not its object
    return torch.device("cuda")


def _advice() -> str:
    if torch.version.cuda is None:
        return "install the build of torch for this driver's CUDA"
    return f"torch is built for CUDA {torch.version.cuda}, so see that nvidia-smi shows a GPU and a driver for that"


def native_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware; emulated, it is several times slower than float32."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if device.type == "cuda" and torch.cuda.is_available():
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return False
