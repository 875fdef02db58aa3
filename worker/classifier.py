"""Scores images: uint8 frames in, probabilities out. Knows nothing of content IDs, queues or bans.

Holds one version at a time; taking up another swaps one reference, so that a batch is scored by one version and one
engine and names both. Versions that differ in their last layer share the engine, so that such a swap builds nothing.
A faster engine is put in from outside (`use`); which may be is not decided here.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from worker.errors import UsageError, WeightsError
from worker.model import devices
from worker.model import engine as engines
from worker.model import network as networks
from worker.model.devices import MemoryCounted
from worker.model.engine import EagerEngine, Engine, Head
from worker.model.graphed import IN_FLIGHT, GraphedEngine
from worker.model.manifest import Manifest
from worker.model.preprocessing import Preprocessing
from worker.model.tensors import state_dict
from worker.model.weights import WeightsStore

logger = logging.getLogger(__name__)

Frames = engines.Frames
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Version:
    """A version in memory: all that a batch needs of it, in one object.

    `body` names what its engine runs; `blank` is what that makes of a blank image, for the last layer to be tried on.
    """

    manifest: Manifest
    runner: Engine
    head: Head
    body: str
    preprocessing: Preprocessing
    blank: Tensor

    @property
    def id(self) -> str:
        """The version's id in the store."""
        return self.manifest.id

    @property
    def engine(self) -> str:
        """The engine's name, such as `cpu-bf16`."""
        return self.runner.name


@dataclass(frozen=True)
class Scores:
    """Probabilities [n, 3] in label order, and the version that gave them."""

    probabilities: Probabilities
    version: Version


class Classifier:
    """The network on its device.

    Args:
        store: where versions come from.
        device: `auto`, `cpu` or `cuda`.
        precision: `auto`, `fp32`, `bf16` or `int8`. It serves with the eager engine nearest to it: bf16 where that was
            asked for, or, with `auto`, where the hardware multiplies it natively and the version's manifest says that
            it was compared with fp32 and agreed; fp32 otherwise.
        threads: threads of a forward pass on the CPU; 0 leaves torch's own choice, one a core.

    Raises:
        UsageError: this machine has no such device, or the device no such precision.
    """

    def __init__(self, store: WeightsStore, *, device: str, precision: str, threads: int = 0) -> None:
        self._store = store
        self.device = devices.choose(device)
        if precision == "bf16" and not devices.native_bf16(self.device):
            raise UsageError(
                f"MODERATION_PRECISION is bf16 but this {self.device.type} does not multiply it natively and would be "
                "several times slower than in fp32: set auto."
            )
        if precision == "int8" and self.device.type != "cpu":
            raise UsageError("MODERATION_PRECISION is int8, which is built for the CPU: set auto, or bf16.")
        self.precision = precision
        self._loading = threading.Lock()
        self._version: Version | None = None
        self.accepts: Callable[[Engine, Manifest, Head], bool] = lambda engine, manifest, head: False
        """Asked on a swap whether the faster engine in service may serve a version with this last layer."""
        self.watcher: Callable[[Version, Frames, Tensor], None] | None = None
        """Shown each scored batch and its features while it is set; must be quick."""
        if threads:
            torch.set_num_threads(threads)

    @property
    def version(self) -> Version | None:
        """The version in service."""
        return self._version

    @property
    def device_name(self) -> str:
        """The device as people know it: a GPU's model, or how many threads of the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} threads"

    def load(self, version_id: str) -> Version:
        """Verifies a version, brings it onto the device, tries it on a blank image, and puts it into service.

        Raises WeightsError where it cannot be served, and OutOfDeviceMemoryError where it does not fit beside what is
        in memory, in the same sentence each time; the version in service then stays.
        """
        no_room = (
            f"{version_id} does not fit into the memory of {self.device} beside what is there: free memory on it, or "
            "restart this worker"
        )
        with self._loading, MemoryCounted(self.device, no_room):
            manifest = self._store.manifest(version_id)
            preprocessing = Preprocessing.from_json(manifest.preprocessing)
            current = self._version
            if current is not None and current.preprocessing != preprocessing:
                raise WeightsError(
                    f"{version_id} prepares pictures in another way than {current.id}: restart the workers to serve it"
                )
            network = networks.get(manifest.network)
            delta = self._store.read_delta(manifest)
            base: dict[str, Tensor] | None = None
            if network.head_names() - delta.keys():  # it kept a part of the base's last layer
                base = self._store.read_base(manifest.base.sha256, manifest.base.bytes)
            head = engines.head_of(network, state_dict(base or {}, delta), manifest.temperature, self.device)
            body = engines.body_key(network, manifest, delta, preprocessing)
            if current is not None and current.body == body and self._may_stay(current.runner, manifest, head):
                # Warm already: another pass of the body, beside the batch in work, would only delay that.
                runner, blank = current.runner, current.blank
            else:
                runner = self._eager(manifest, delta, base, self._first_precision(manifest))
                blank = self._blank(runner, preprocessing)
            self._version = self._tried(Version(manifest, runner, head, body, preprocessing, blank))
            return self._version

    def reference(self, version: Version) -> Engine:
        """float32 as PyTorch runs it: the engine in service where it is that one, else read anew from the store."""
        if version.engine == f"{self.device.type}-fp32" and isinstance(version.runner, EagerEngine):
            return version.runner
        return self.eager(version, "fp32")

    def eager(self, version: Version, precision: str) -> Engine:
        """A version's body as PyTorch runs it in `precision`, read anew from the store."""
        return self._eager(version.manifest, self._store.read_delta(version.manifest), None, precision)

    def graphed(self, version: Version, precision: str, max_images: int) -> Engine:
        """The same captured as CUDA graphs for up to `max_images`.

        Raises OutOfDeviceMemoryError where they do not fit, and RuntimeError as GraphedEngine does.
        """
        manifest, delta = version.manifest, self._store.read_delta(version.manifest)
        with MemoryCounted(self.device, f"Graphs of {max_images} images do not fit on {self.device}."):
            body = self._body(manifest, delta, None, precision)
            return GraphedEngine(body, self.device, precision, version.preprocessing, max_images)

    def use(self, engine: Engine, version_id: str) -> bool:
        """Puts `engine` in the place of the one in service, between two batches; False where another version is in
        service by now. It is warmed up first."""
        with self._loading:
            current = self._version
            if current is None or current.id != version_id:
                return False
            blank = self._blank(engine, current.preprocessing)
            self._version = self._tried(replace(current, runner=engine, blank=blank))
            return True

    @property
    def in_flight(self) -> int:
        """Batches that may be begun before the first is waited for: on a CPU it would only wait longer."""
        return IN_FLIGHT if self.device.type == "cuda" else 1

    def score(self, frames: Frames) -> Scores:
        """Probabilities of uint8 frames [n, crop, crop, 3].

        Raises:
            OutOfDeviceMemoryError: the batch does not fit.
            WeightsError: nothing is loaded yet.
        """
        return self.begin(frames)()

    def begin(self, frames: Frames) -> Callable[[], Scores]:
        """Hands frames to the device; the call that is returned waits for their scores. Both raise as `score`."""
        version = self._version
        if version is None:
            raise WeightsError("No weights are loaded: promote a version with moderation-trainer.")
        return self._begin(version, frames)

    def _begin(self, version: Version, frames: Frames) -> Callable[[], Scores]:
        with self._images(len(frames)), torch.inference_mode():
            features = version.runner.features(frames)
            probabilities, copied = _to_host(version.head.probabilities(features))

        def scores() -> Scores:
            with self._images(len(frames)):
                copied()
            _check(version, probabilities)
            watcher = self.watcher
            if watcher is not None:
                watcher(version, frames, features)
            return Scores(probabilities, version)

        return scores

    def _images(self, count: int) -> MemoryCounted:
        return MemoryCounted(self.device, f"{count} images do not fit on {self.device}.")

    def _blank(self, engine: Engine, preprocessing: Preprocessing) -> Tensor:
        """Warms an engine up: what it makes of a blank image, float32 [1, width]."""
        with self._images(1), torch.inference_mode():
            return engine.features(np.zeros((1, preprocessing.crop, preprocessing.crop, 3), np.uint8)).clone()

    def _tried(self, version: Version) -> Version:
        with torch.inference_mode():
            _check(version, version.head.probabilities(version.blank).cpu().numpy())
        return version

    def _first_precision(self, manifest: Manifest) -> str:
        if self.precision != "auto":
            return "bf16" if self.precision == "bf16" else "fp32"
        check = manifest.engines.get(f"{self.device.type}-bf16")
        return "bf16" if check is not None and check.passed and devices.native_bf16(self.device) else "fp32"

    def _may_stay(self, engine: Engine, manifest: Manifest, head: Head) -> bool:
        if isinstance(engine, EagerEngine) and engine.name == f"{self.device.type}-{self._first_precision(manifest)}":
            return True
        return self.accepts(engine, manifest, head)

    def _eager(
        self, manifest: Manifest, delta: dict[str, Tensor], base: dict[str, Tensor] | None, precision: str
    ) -> Engine:
        body = self._body(manifest, delta, base, precision)
        return EagerEngine(body, self.device, precision, Preprocessing.from_json(manifest.preprocessing))

    def _body(
        self, manifest: Manifest, delta: dict[str, Tensor], base: dict[str, Tensor] | None, precision: str
    ) -> nn.Sequential:
        network = networks.get(manifest.network)
        base = base or self._store.read_base(manifest.base.sha256, manifest.base.bytes)
        return engines.body_of(network, state_dict(base, delta), self.device, engines.DTYPES[precision])


def _check(version: Version, probabilities: Probabilities) -> None:
    if not np.isfinite(probabilities).all():
        raise FloatingPointError(f"{version.id} gives probabilities that are no numbers")


def _to_host(probabilities: Tensor) -> tuple[Probabilities, Callable[[], None]]:
    """float32 [n, 3] in the host's memory, and what waits until they are there."""
    if probabilities.device.type != "cuda":
        return probabilities.numpy(), lambda: None
    host = torch.empty(probabilities.shape, dtype=probabilities.dtype, pin_memory=True)
    host.copy_(probabilities, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # waited for at every batch: in a loop that takes a core that decodes
    copied.record()
    return host.numpy(), copied.synchronize
