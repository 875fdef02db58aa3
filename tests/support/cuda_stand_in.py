"""CUDA graphs without a GPU: what is run under a capture is noted, and a replay runs it again on the same memory.

As on a device, a graph holds none of the tensors that it only reads: where one of them is gone, the replay says so,
and where a device would read whatever lies there now. Streams and events are there and do nothing, for all of it runs
at once.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Stream:
    """Does nothing."""

    current: ClassVar["Stream"]

    def wait_stream(self, other: "Stream") -> None:
        """There is nothing to wait for."""

    def wait_event(self, event: "Event") -> None:
        """There is nothing to wait for."""


class Event:
    """Does nothing, and is waited for only where that leaves the core to others."""

    def __init__(self, blocking: bool = False) -> None:
        self._blocking = blocking

    def record(self, stream: Stream | None = None) -> None:
        """There is nothing to note."""

    def synchronize(self) -> None:
        """There is nothing to wait for."""
        assert self._blocking, "a thread waits in a loop, on a core that decoders need"


@contextmanager
def stream(entered: Stream) -> Iterator[None]:
    """As torch.cuda.stream."""
    before, Stream.current = Stream.current, entered
    try:
        yield
    finally:
        Stream.current = before


class Graph:
    """As torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def pool(self) -> tuple[int, int]:
        """Memory is not what is tried here."""
        return (0, 1)

    def replay(self) -> None:
        """Every step once more, its results where they were before."""
        for function, args, kwargs, made in self.steps:
            again = function(*tree_map_only(_Read, _Read.tensor, args), **tree_map_only(_Read, _Read.tensor, kwargs))
            for old, new in zip(_tensors(made), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Read:
    """A tensor that was not made under the capture, as an address."""

    def __init__(self, tensor: Tensor) -> None:
        self._reference = weakref.ref(tensor)

    def tensor(self) -> Tensor:
        found = self._reference()
        assert found is not None, "a graph reads a tensor that is gone"
        return found


class _Capture(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self._made |= {id(tensor): tensor for tensor in _tensors(made)}
        noted = tree_map_only(Tensor, lambda tensor: tensor if id(tensor) in self._made else _Read(tensor), args)
        named = tree_map_only(
            Tensor, lambda tensor: tensor if id(tensor) in self._made else _Read(tensor), kwargs or {}
        )
        self._graph.steps.append((function, noted, named, made))
        return made


@contextmanager
def capture(graph: Graph, *, pool: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
    """As torch.cuda.graph, which leaves its stream only where the capture succeeded."""
    before, Stream.current = Stream.current, stream
    with _Capture(graph):
        yield
    Stream.current = before


def _tensors(made: Any) -> list[Tensor]:
    return [one for one in (made if isinstance(made, tuple | list) else (made,)) if isinstance(one, Tensor)]


def _no_synchronize() -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Makes torch.cuda's graphs the ones above; returns the device to give to what uses them."""
    real_empty = torch.empty
    monkeypatch.setattr(Stream, "current", Stream(), raising=False)
    for name, stand_in in {
        "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "graph": capture, "stream": stream,
        "current_stream": lambda: Stream.current, "device": lambda device: nullcontext(),
        "synchronize": _no_synchronize,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **other: real_empty(*shape, **other))
    return torch.device("cpu")
