"""Runs what AOTInductor compiled, through its C interface and without Python's lock: a tensor in, a tensor out.

torch's own loader keeps the lock for the whole of a forward pass (pytorch/pytorch issue 197516): seconds for a batch on
a CPU, in which no thread of the process hands on a picture, refreshes a claim or answers for its health. ctypes lets go
of it. Knows no folders, versions or precisions.

    the compiler's archive ─► `extract` ─► a shared library, its SHA-256 behind its end ─► `Library`
"""

import ctypes
import hashlib
import json
import shutil
import weakref
import zipfile
from pathlib import Path
from typing import Final

from torch import Tensor
from torch._C import _aoti

_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_CHUNK_BYTES: Final = 2**20

_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


def extract(archive: Path, library: Path) -> None:
    """Takes the library out of what `torch._inductor.aoti_compile_and_package` wrote.

    Raises ValueError where it calls operators without a C interface, which only torch's own loader hands on.
    """
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
        for name in names:
            if name.endswith(".wrapper.json"):
                called = sorted({node["node"]["target"] for node in json.loads(packed.read(name))["nodes"]})
                if called:
                    raise ValueError(f"the compiled network calls operators without a C interface: {called}")
        (wrapper,) = (name for name in names if name.endswith(".so"))
        with packed.open(wrapper) as source, library.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)
    with library.open("r+b") as sealed:
        digest = hashlib.file_digest(sealed, "sha256").digest()
        sealed.write(digest)  # behind what was just read to its end, where the dynamic linker does not look


class Library:
    """A compiled network of one input and one output, in memory; callable from any thread, one call after the other.

    Raises:
        OSError: it is not what `extract` wrote (a part of it would end the process when touched), or cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        if not _whole(path):
            raise OSError("it is damaged")
        self._library = ctypes.CDLL(str(path))
        self._container = ctypes.c_void_p()
        one = ctypes.c_size_t(1)
        if self._library.AOTInductorModelContainerCreateWithDevice(ctypes.byref(self._container), one, b"cpu", None):
            raise OSError("its network cannot be built")
        # Not when the interpreter ends, where another thread may be in it.
        weakref.finalize(self, self._library.AOTInductorModelContainerDelete, self._container).atexit = False

    def __call__(self, pixels: Tensor) -> Tensor:
        """What the network makes of its input. Raises RuntimeError; the library says on stderr why."""
        (given,) = _aoti.unsafe_alloc_void_ptrs_from_tensors([pixels])
        inputs = (ctypes.c_void_p * 1)(_capsule_pointer(given, None))  # theirs from the call on, to the end of it
        outputs = (ctypes.c_void_p * 1)()
        one = ctypes.c_size_t(1)
        if self._library.AOTInductorModelContainerRun(self._container, inputs, one, outputs, one, None, None):
            raise RuntimeError("the compiled network failed")
        return _aoti.alloc_tensors_by_stealing_from_void_ptrs([_new_capsule(outputs[0], None, None)])[0]


def _whole(path: Path) -> bool:
    """Whether the file ends with the SHA-256 of what is before."""
    seen = hashlib.sha256()
    with path.open("rb") as file:
        left = path.stat().st_size - _DIGEST_BYTES
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            seen.update(chunk)
            left -= len(chunk)
        return left == 0 and file.read() == seen.digest()
