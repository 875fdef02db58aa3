"""The follower and a champion that does not fit into the device's memory: said once, and tried ever more rarely."""

import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.support.store import colour_store, publish_colours
from worker import app, service
from worker.champion import ChampionFollower
from worker.classifier import Classifier
from worker.errors import WeightsError
from worker.metrics import Metrics
from worker.model import engine as engines
from worker.model.devices import OutOfDeviceMemoryError
from worker.model.weights import WeightsStore


class Clock:
    """In the place of `time` and of the follower's event: waiting takes no time, and ends after `until_s`."""

    def __init__(self, until_s: float) -> None:
        self.now_s = 0.0
        self._until_s = until_s

    def monotonic(self) -> float:
        """Seconds that were waited so far."""
        return self.now_s

    def wait(self, timeout_s: float) -> bool:
        """Whether the end has come."""
        self.now_s += timeout_s
        return self.now_s > self._until_s


class Full:
    """A device without room for a body of which a part is read anew; notes when it was asked for some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked_s: list[float] = []
        self.clock = Clock(0)
        self._real = engines.body_of
        monkeypatch.setattr(engines, "body_of", self._body_of)
        self.free = True

    def _body_of(self, *arguments: object) -> object:
        self.asked_s.append(self.clock.now_s)
        if self.free:
            return self._real(*arguments)
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(self.asked_s)} MiB")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    """One that has room until `free` is False."""
    return Full(monkeypatch)


def follower_of(store: WeightsStore) -> ChampionFollower:
    """One whose thread is not started."""
    classifier = Classifier(store, device="cpu", precision="fp32")
    return ChampionFollower(store, classifier, Metrics())


def run(follower: ChampionFollower, full: Full, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its thread does in so many seconds."""
    full.clock = Clock(seconds)
    full.asked_s.clear()
    monkeypatch.setattr("worker.champion.time", full.clock)
    monkeypatch.setattr(follower, "_stopping", full.clock)
    follower._run()


def serving(follower: ChampionFollower) -> str:
    version = follower._classifier.version
    assert version is not None
    return version.id


def test_a_champion_that_does_not_fit_is_said_once_and_tried_ever_more_rarely(
    tmp_path: Path, full: Full, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each attempt reads half a gigabyte; torch's own sentence is another one each time."""
    store = colour_store(tmp_path)
    follower = follower_of(store)
    follower._load(str(store.champion()))
    first = serving(follower)
    monkeypatch.setattr(follower._classifier, "_may_stay", lambda *arguments: False)
    second = publish_colours(store, sharpness=5.0, promote=True)
    full.free = False
    with caplog.at_level(logging.ERROR):
        run(follower, full, 250, monkeypatch)
    assert full.asked_s == [1, 2, 4, 8, 16, 32, 64, 124, 184, 244]
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"{second} does not fit into the memory of cpu" in line and f"{first} stays in service" in line

    third = publish_colours(store, sharpness=6.0, promote=True)
    run(follower, full, 5, monkeypatch)
    assert full.asked_s == [1, 2, 4]  # another one may be smaller
    full.free = True
    run(follower, full, 9, monkeypatch)
    assert serving(follower) == third
    assert follower._metrics.registry.get_sample_value("moderation_champion_refused") == 0


def test_at_the_start_it_is_one_sentence_and_no_exit_of_success(
    tmp_path: Path, full: Full, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As whatever else keeps a worker from starting."""
    full.free = False
    follower = follower_of(colour_store(tmp_path))
    with pytest.raises(OutOfDeviceMemoryError) as refused:
        follower.start()

    def service(*arguments: object, **named: object) -> None:
        raise refused.value

    monkeypatch.setattr("worker.service.Service", service)
    with pytest.raises(SystemExit) as ended:
        app.PullerStep.start(SimpleNamespace(), SimpleNamespace(hostname="here"))
    assert ended.value.code != 0
    said = capsys.readouterr().err
    assert said == f"error: {refused.value}\n"
    assert f"{follower._store.champion()} does not fit" in said


def test_a_device_that_is_broken_is_told(tmp_path: Path, full: Full, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error with which CUDA answers nothing any more, the process must end; after another it goes on."""
    follower, broken = follower_of(colour_store(tmp_path)), []
    follower._on_broken = broken.append

    sticky = threading.Event()

    def illegal(*arguments: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def synchronize(device: torch.device) -> None:
        if sticky.is_set():
            illegal()

    follower._classifier.device = torch.device("cuda")
    monkeypatch.setattr(follower._classifier, "load", illegal)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: SimpleNamespace(synchronize=lambda: synchronize(of)))
    run(follower, full, 1, monkeypatch)
    assert broken == []
    sticky.set()
    run(follower, full, 1, monkeypatch)
    assert [type(error) for error in broken] == [torch.AcceleratorError]


def test_a_stop_does_not_wait_for_a_device_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends; no thread can be ended from outside."""
    store = colour_store(tmp_path)
    follower, hangs, open_again = follower_of(store), threading.Event(), threading.Event()
    broken: list[BaseException] = []
    follower._on_broken, follower._closing_s = broken.append, 0.1
    follower.start()

    def load(version_id: str) -> None:
        hangs.set()
        open_again.wait()
        raise WeightsError("it is over")

    monkeypatch.setattr(follower._classifier, "load", load)
    publish_colours(store, sharpness=5.0, promote=True)
    assert hangs.wait(30)
    stopping = threading.Thread(target=follower.stop, daemon=True)
    stopping.start()
    stopping.join(30)
    assert not stopping.is_alive()
    assert [str(error) for error in broken] == ["a champion is still being loaded 0.1 s after the stop"]
    open_again.set()
    follower.stop()


def test_a_worker_drains_though_its_settings_have_become_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read once, at its start: somebody may be writing the file just when it is stopped."""
    drained: list[float] = []
    monkeypatch.setattr(service, "Service", lambda settings, **named: SimpleNamespace(stop=drained.append))
    monkeypatch.setenv("MODERATION_DRAIN_S", "7")
    step = app.PullerStep(SimpleNamespace(options={}))
    step.start(SimpleNamespace(hostname="here"))
    monkeypatch.setenv("MODERATION_MAX_BATCH", "none")
    step.stop(SimpleNamespace())
    assert drained == [7.0]
