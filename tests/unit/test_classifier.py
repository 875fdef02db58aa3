"""The classifier where the device refuses: what is lack of memory, and what is not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import cuda_stand_in
from tests.support.store import colour_store
from worker.classifier import Classifier, _to_host
from worker.errors import UsageError
from worker.model import devices
from worker.model.devices import NO_ROOM, OutOfDeviceMemoryError
from worker.model.engine import Frames
from worker.model.weights import WeightsStore

BLANK = np.zeros((2, 224, 224, 3), np.uint8)
CUDNN = "GET was unable to find an engine to execute this computation"


class Failing:
    """An engine that raises `error`."""

    name = "cpu-fp32"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def features(self, frames: Frames) -> Tensor:
        """Raises."""
        raise self._error


def failing(folder: Path, error: Exception, device: str = "cuda") -> Classifier:
    """A classifier whose engine raises `error`, as if it were on `device`."""
    store = colour_store(folder)
    classifier = Classifier(store, device="cpu", precision="fp32")
    version = classifier.load(str(store.champion()))
    classifier._version = replace(version, runner=Failing(error))
    classifier.device = torch.device(device)
    return classifier


@pytest.mark.parametrize("said", [*NO_ROOM, CUDNN])
def test_what_cudas_libraries_say_where_memory_lacks_is_lack_of_memory(tmp_path: Path, said: str) -> None:
    """The batch is halved for it, where it would otherwise be each picture's own fault."""
    classifier = failing(tmp_path, RuntimeError(f"{said} (and more)"))
    with pytest.raises(OutOfDeviceMemoryError, match="2 images do not fit on cuda"):
        classifier.score(BLANK)


def test_torch_itself_says_it_on_any_device(tmp_path: Path) -> None:
    with pytest.raises(OutOfDeviceMemoryError):
        failing(tmp_path, torch.OutOfMemoryError("CUDA out of memory."), "cpu").score(BLANK)


@pytest.mark.parametrize(
    ("error", "device"),
    [(RuntimeError(CUDNN), "cpu"), (RuntimeError("sizes do not match"), "cuda"), (ValueError(CUDNN), "cuda")],
)
def test_another_error_stays_what_it_is(tmp_path: Path, error: Exception, device: str) -> None:
    with pytest.raises(type(error)) as raised:
        failing(tmp_path, error, device).score(BLANK)
    assert raised.value is error


class OnCuda(Tensor):
    """Says that it is on a GPU."""

    device = torch.device("cuda")


def test_waiting_for_scores_leaves_the_core_to_the_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's events refuse to be waited for in a loop."""
    cuda_stand_in.put_in_place(monkeypatch)
    given = torch.rand(4, 3)
    host, wait = _to_host(given.as_subclass(OnCuda))
    wait()
    assert (host == given.numpy()).all()


def test_settings_that_this_machine_cannot_serve_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "native_bf16", lambda device: False)
    store = WeightsStore(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="MODERATION_DEVICE is cuda"):
            Classifier(store, device="cuda", precision="auto")
    with pytest.raises(UsageError, match="MODERATION_PRECISION is bf16"):
        Classifier(store, device="cpu", precision="bf16")
