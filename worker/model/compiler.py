"""Compiles a version's body ahead of time, in a process of its own: `python -m worker.model.compiler`, job on stdin.

A version in the store goes in, a library that `aoti` runs comes out. In a process of its own because compiling takes
minutes, gigabytes and Python's lock, none of which the process that serves has to spare; at a lower priority. Ahead of
time rather than torch.compile at the first call because a library has no guards: nothing is ever compiled again while
pictures wait, whatever the batch. The same compiler, frozen weights too.
"""

import importlib
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worker.errors import ModerationError

BATCH_MAX = 4096
HALF_DONE = "compiling-"
"""Prefix of the folder that a compiler works in, beside what it makes; one that is killed leaves it behind."""
EXIT_REFUSED = 3


@dataclass(frozen=True)
class Job:
    """What to compile. `registers` is the module that makes the version's network known; `library` is written whole
    or not at all; `threads` is how many it will run with."""

    store: str
    version: str
    precision: str
    threads: int
    library: str
    registers: str = "worker.model.network"

    def to_json(self) -> str:
        """For the process's stdin."""
        return json.dumps(asdict(self))


def compile_library(job: Job) -> None:
    """Writes `job.library`. Raises WeightsError where the version cannot be read or keeps no ranges for int8."""
    import torch
    from torch._inductor.utils import fresh_cache

    from worker.model import aoti, int8
    from worker.model import engine as engines
    from worker.model import network as networks
    from worker.model.tensors import state_dict
    from worker.model.weights import WeightsStore

    importlib.import_module(job.registers)
    torch.set_num_threads(job.threads)
    store = WeightsStore(Path(job.store))
    manifest = store.manifest(job.version)
    network = networks.get(manifest.network)
    base = store.read_base(manifest.base.sha256, manifest.base.bytes)
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    body = engines.body_of(network, state_dict(base, store.read_delta(manifest)), torch.device("cpu"), dtype)
    del base
    crop = int(manifest.preprocessing["crop"])
    example = torch.zeros(4, 3, crop, crop, dtype=dtype).contiguous(memory_format=torch.channels_last)
    shapes: Any = ({0: torch.export.Dim("batch", min=1, max=BATCH_MAX)},)
    # Headers compiled in advance would stay in /tmp, 290 MB, in a folder that anyone may have made before, and take
    # longer than they save.
    options = {"freezing": True, "compile_threads": 1, "aot_inductor.precompile_headers": False}
    library = Path(job.library)
    with tempfile.TemporaryDirectory(prefix=HALF_DONE, dir=library.parent) as half_done:
        archive, finished = Path(half_done, "network.pt2"), Path(half_done, library.name)
        # The compiler's own cache goes: the library is all that is kept, and nobody unpickles what lies there.
        with torch.no_grad(), fresh_cache(dir=half_done):
            module: torch.nn.Module = body
            if job.precision == "int8":
                module = int8.quantised(body, example, shapes, manifest.activation_ranges)
            program = torch.export.export(module, (example,), dynamic_shapes=shapes)
            torch._inductor.aoti_compile_and_package(program, package_path=str(archive), inductor_configs=options)
        aoti.extract(archive, finished)
        finished.replace(library)


def main() -> None:
    """Reads a job from stdin and does it; exit 3 and one sentence on stderr where it is refused."""
    os.nice(10)
    try:
        compile_library(Job(**json.loads(sys.stdin.read())))
    except ModerationError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_REFUSED) from None


if __name__ == "__main__":
    main()
