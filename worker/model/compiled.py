"""Engines for the CPU compiled ahead of time, and the folder that keeps them so that a restart is quick.

A version and a precision go in, a library is taken from the folder or compiled by another process, and an engine comes
out. Libraries are programs: the folder belongs to this user alone and lies outside the weights store.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from worker.errors import ModerationError
from worker.model import files
from worker.model import network as networks
from worker.model.aoti import Library
from worker.model.compiler import HALF_DONE, Job
from worker.model.engine import DTYPES, Frames
from worker.model.manifest import Manifest
from worker.model.preprocessing import Preprocessing

EVIDENCE: Final = ".evidence.safetensors"
"""Suffix of the files that hold what an engine was compared on."""

KEPT: Final = 6
"""Files of a kind that stay in the folder, the last used. For VGG-11 a library is 124 MB in int8 and 246 MB in bf16,
and what one was compared on 39 MB at most."""

COMPILE_MAX_S: Final = 1800.0

AT_ONCE_A_THREAD: Final = {"bf16": 4, "int8": 8}
"""Images that go through a library together. What a layer of VGG-11 makes of more no longer stays in the cache until
the next layer reads it: with two threads a batch of 32 takes 37.5 ms an image in bf16 at once, and 34.9 in parts of 8.
Of much fewer, and the weights of the fully connected layers are read too often."""

BODIES: Final = tuple(Path(__file__).with_name(f"{name}.py") for name in ("engine", "network"))
"""Our own code that says what a body is, how frames become its input, and what fp32 makes of them."""

COMPILING: Final = (*BODIES, *(Path(__file__).with_name(f"{name}.py") for name in ("aoti", "compiler", "int8")))
"""Our own code that a library and what it is compared with come from: another release of it compiles anew. That takes
minutes beside the work, once; a library of a network that has changed would judge in its place for good."""

CAPTURING: Final = (*BODIES, Path(__file__).with_name("graphed.py"))
"""Our own code that a GPU's graphs and what they are compared with come from: another release is compared anew."""

CPU: Final = torch.device("cpu")


class EngineError(ModerationError):
    """An engine cannot be had; `reason` is one word for a metric."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CompiledEngine:
    """A library in memory. Any number of frames; threads as many as it was compiled for."""

    def __init__(self, library: Path, precision: str, preprocessing: Preprocessing) -> None:
        self.name = f"cpu-{precision}"
        self._preprocessing = preprocessing
        self._at_once_a_thread = AT_ONCE_A_THREAD[precision]
        self._dtype = DTYPES.get(precision, torch.float32)  # int8 takes float32 and quantises it itself
        try:
            self._run = Library(library)
        except OSError as error:
            library.unlink(missing_ok=True)  # the next start compiles it anew
            raise EngineError(
                "build_failed", f"the compiled engine {library.name} cannot be loaded ({error})"
            ) from error

    def features(self, frames: Frames) -> Tensor:
        """As `Engine.features`."""
        at_once = self._at_once_a_thread * torch.get_num_threads()
        parts = max(1, -(-len(frames) // at_once))
        return torch.cat([self._features(part) for part in torch.from_numpy(frames).tensor_split(parts)])

    def _features(self, frames: Tensor) -> Tensor:
        return self._run(networks.normalise(frames, self._preprocessing, self._dtype)).float()


class EngineCache:
    """The folder of libraries.

    Args:
        folder: made with rights for this user alone; EngineError later where it belongs to others.
        store: root of the weights store, for the process that compiles.
        registers: module that makes networks known, other than the worker's own.
    """

    def __init__(self, folder: Path, store: Path, registers: str = "worker.model.network") -> None:
        self.folder = folder
        self._store = store
        self._registers = registers
        self._process: subprocess.Popen[str] | None = None
        self._stopped = threading.Event()

    def engine(self, manifest: Manifest, body: str, precision: str) -> CompiledEngine:
        """The version's body in `precision`. Raises EngineError where it cannot be had."""
        self.check_folder()
        library = self.folder / f"{self.key(manifest, body, precision)}.so"
        if not library.exists():
            self._compile(manifest, precision, library)
        self.used(library)
        return CompiledEngine(library, precision, Preprocessing.from_json(manifest.preprocessing))

    def key(self, manifest: Manifest, body: str, precision: str, device: torch.device = CPU) -> str:
        """A file name for what depends on the body, the precision, this processor or GPU, these releases, our code."""
        decides: list[Any] = [body, precision, torch.__version__, torch.get_num_threads(), torch.cpu.get_capabilities()]
        if precision == "int8":
            ranges = sorted(manifest.activation_ranges.items())
            decides += [importlib.metadata.version("torchao"), ranges]
        if device.type == "cuda":
            decides += [torch.cuda.get_device_name(device), torch.version.cuda, torch.backends.cudnn.version()]
        sources = CAPTURING if device.type == "cuda" else COMPILING
        decides += [hashlib.sha256(source.read_bytes()).hexdigest() for source in sources]
        digest = hashlib.sha256(json.dumps(decides, default=str).encode()).hexdigest()
        return f"{manifest.network}-{precision}-{digest[:24]}"

    def check_folder(self) -> None:
        """Makes the folder; EngineError where others may write to it, or nobody can."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = self.folder.lstat()
        except OSError as error:
            raise EngineError(
                "no_cache", f"the folder {self.folder} for compiled engines cannot be used ({error})"
            ) from error
        mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if not mine or status.st_mode & 0o077:
            raise EngineError("no_cache", f"the folder {self.folder} must belong to this user alone, with mode 0700")

    def used(self, file: Path) -> None:
        """Notes that a file of the folder, if it is there, is in use, and removes those that have not been for long."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(file)
        for ending in (".so", EVIDENCE):
            latest = sorted(self.folder.glob(f"*{ending}"), key=_used_at, reverse=True)
            for old in latest[KEPT:]:
                old.unlink(missing_ok=True)
        nobodys = time.time() - 2 * COMPILE_MAX_S  # whoever worked there was killed
        for left in self.folder.glob(f"{HALF_DONE}*"):
            if _used_at(left) < nobodys:
                shutil.rmtree(left, ignore_errors=True)
        files.remove_abandoned(self.folder)

    def stop(self) -> None:
        """Ends a compilation in work; its caller gets an EngineError."""
        self._stopped.set()
        process = self._process
        if process is not None:
            _end(process)

    def _compile(self, manifest: Manifest, precision: str, library: Path) -> None:
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            raise EngineError("no_compiler", "there is no C++ compiler: install g++ to have engines compiled")
        job = Job(
            store=str(self._store.resolve()),
            version=manifest.id,
            precision=precision,
            threads=torch.get_num_threads(),
            library=str(library.resolve()),
            registers=self._registers,
        )
        # A session of its own, so that the compiler's children end with it.
        with subprocess.Popen(
            [sys.executable, "-m", "worker.model.compiler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            self._process = process
            if self._stopped.is_set():
                _end(process)
            try:
                _, said = process.communicate(job.to_json(), timeout=COMPILE_MAX_S)
            except subprocess.TimeoutExpired:
                _end(process)
                raise EngineError("build_failed", f"compiling took longer than {COMPILE_MAX_S:g} s") from None
            except OSError as error:
                _end(process)
                raise EngineError("build_failed", f"compiling failed ({error})") from error
            finally:
                self._process = None
        if process.returncode != 0 or not library.exists():
            last = (said.strip().splitlines() or ["it said nothing"])[-1]
            raise EngineError("build_failed", f"compiling ended with exit {process.returncode}: {last}")


def _used_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # another worker of the same folder removed it meanwhile
        return 0.0


def _end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
