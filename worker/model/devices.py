"""Which device networks run on, what it can, and what its errors mean. Knows no networks, stores or settings."""

from types import TracebackType
from typing import Final

import torch

from worker.errors import ModerationError, UsageError

NO_ROOM: Final = (
    "unable to find an engine to execute this computation",  # cuDNN, where no plan's workspace fits
    "CUDA error: out of memory",  # the driver, for what torch's allocator is not asked for
    "CUDA driver error: out of memory",  # the same, asked past the runtime, as for expandable segments
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its handle takes memory, and it says no more than that there is none
    "CUDNN_STATUS_NOT_INITIALIZED",  # and so does cuDNN's
    "CUDNN_STATUS_ALLOC_FAILED",  # cuDNN 8
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # cuDNN 9, and the next
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
)
"""What CUDA's libraries say in a RuntimeError where memory lacks. Not all of it is certain: whatever else is wrong is
still wrong in a smaller batch."""

SPOILT: Final = "captures_underway.empty()"
"""What torch before 2.12 asserts in every capture of graphs after one that failed, for as long as the process lives."""


class OutOfDeviceMemoryError(ModerationError):
    """The device has no memory for a batch of this size, of which a smaller one may fit, or for a version."""


class MemoryCounted:
    """A `with` in which lack of memory is an OutOfDeviceMemoryError with one sentence of ours: what CUDA says of it has
    other numbers each time.

    No generator, as contextlib makes one of: in Python 3.13 its frames and the error hold each other, and all that
    did not fit with them, until the garbage collector comes by.
    """

    def __init__(self, device: torch.device, sentence: str) -> None:
        self._device = device
        self._sentence = sentence

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # torch has let go of its cache by then, and tried again
        if isinstance(error, OutOfDeviceMemoryError | RuntimeError) and lacks_memory(error, self._device):
            raise OutOfDeviceMemoryError(self._sentence) from error


def choose(name: str) -> torch.device:
    """The device for `cpu`, `cuda`, or `auto`, which is CUDA where torch finds a device.

    On CUDA, float32 is computed as float32 from now on, and sums of bfloat16 are taken in it. Raises UsageError where
    CUDA is asked for and there is none.
    """
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise UsageError(f"MODERATION_DEVICE is cuda but torch finds no CUDA device: {_advice()}, or set cpu.")
        return torch.device("cpu")
    # cuDNN's own default for convolutions, TF32, keeps 10 bits of 23: no measure for what bf16 is compared with. By
    # torch's older name first, for all that cuDNN does: the newer alone leaves it at odds, which raises when asked.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # mypy sees a file, not its object
    # cuBLAS's default is TF32 where TORCH_ALLOW_TF32_CUBLAS_OVERRIDE says so, as in NVIDIA's images. Set by this call,
    # for matmul.fp32_precision alone leaves torch's older name for the same at odds with it, which raises when asked.
    torch.set_float32_matmul_precision("highest")
    # Or the parts of a long sum may be rounded before they are added, the more of them the smaller a batch is.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
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


def lacks_memory(error: BaseException, device: torch.device) -> bool:
    """Whether `error` says that `device`, or this machine, has no memory left.

    Or an error behind it does, for what the end of a failed capture raises hides what ended it.
    """
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, torch.OutOfMemoryError | MemoryError):
            return True
        if device.type == "cuda" and isinstance(behind, RuntimeError) and any(said in str(behind) for said in NO_ROOM):
            return True
        behind = behind.__cause__ or behind.__context__
    return False


def sticky_error(device: torch.device) -> Exception | None:
    """What `device` answers to all that this process asks from now on, as after an illegal access of its memory.

    None where it works. Waits for what this thread's stream is computing: waiting for the whole device would end a
    capture of graphs in another thread, and fail for it.
    """
    if device.type != "cuda":
        return None
    try:
        torch.cuda.current_stream(device).synchronize()
    except RuntimeError as error:
        return error
    return None
