"""Where a network starts from: drawn at random, from torchvision's file, from any file; each checked."""

import hashlib
import http.server
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import vgg11

from tests.support.evil import Evil
from tests.tiny_network import TINY
from trainer import bases
from worker.errors import UnavailableError, WeightsError
from worker.model.network import Network


@pytest.fixture(scope="module")
def imagenet_tensors() -> dict[str, Tensor]:
    """The tensors of a file like torchvision's: VGG-11 with 1000 outputs, each tensor one repeated number."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vgg11(weights=None).state_dict().items()}
    return {name: torch.full(shape, 0.001 * index) for index, (name, shape) in enumerate(shapes.items())}


@pytest.fixture(scope="module")
def imagenet_file(imagenet_tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Such a file, named by the first digits of its SHA-256 as torchvision's are."""
    folder = tmp_path_factory.mktemp("served")
    path = folder / "vgg11.pth"
    torch.save(imagenet_tensors, path)
    with path.open("rb") as file:
        digits = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    yield path.rename(folder / f"vgg11-{digits}.pth")
    for file_left in folder.iterdir():
        file_left.unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder to download into, emptied at the end: pytest would keep half a gigabyte for three runs."""
    yield tmp_path
    for path in tmp_path.rglob("*.pth"):
        path.unlink()


@pytest.fixture
def server_url(imagenet_file: Path) -> Iterator[str]:
    """The folder of that file, served on loopback."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(imagenet_file.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_random_base_follows_its_seed() -> None:
    """The same seed gives the same tensors, another one others, and torch's own generator is left alone."""
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = bases.random_base(TINY, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, bases.random_base(TINY, seed=1))
    assert not same(first, bases.random_base(TINY, seed=2))


def test_random_base_lacks_the_head_and_carries_information() -> None:
    """The head is for training to add; the other weights are neither zero nor out of scale."""
    base = bases.random_base(TINY, seed=1)
    assert base.keys() == TINY.shapes().keys() - {"classifier.3.weight", "classifier.3.bias"}
    assert 0.5 * (2 / 48) ** 0.5 < base["classifier.0.weight"].std() < 2 * (2 / 48) ** 0.5
    assert not base["classifier.0.bias"].any()


def test_random_base_leaves_normalisation_layers_neutral() -> None:
    """Batch normalisation starts at scale 1, not at a random one."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(1), nn.Linear(2, 3))

    normed = Network("normed", build, lambda module: (module, nn.Sequential()), head="3")
    base = bases.random_base(normed, seed=1)
    assert base["1.weight"].tolist() == [1.0, 1.0]
    assert base["1.running_var"].tolist() == [1.0, 1.0]


def test_imagenet_base_is_downloaded_once(
    imagenet_tensors: dict[str, Tensor], imagenet_file: Path, server_url: str, folder: Path
) -> None:
    """The file is fetched into the folder, its digits checked, and later calls need no network."""
    base = bases.imagenet_base(f"{server_url}/{imagenet_file.name}", folder)
    assert base.keys() == imagenet_tensors.keys() - {"classifier.6.weight", "classifier.6.bias"}
    assert all(torch.equal(base[name], imagenet_tensors[name]) for name in base)
    assert same(base, bases.imagenet_base(f"http://127.0.0.1:9/{imagenet_file.name}", folder))
    assert [path.name for path in folder.iterdir()] == [imagenet_file.name]


def test_the_imagenet_file_is_torchvisions() -> None:
    """The address is torchvision's, whose name carries the digits that are checked."""
    assert bases.imagenet_url().endswith("/vgg11-8a719046.pth")


def test_a_file_with_another_digest_is_refused(imagenet_file: Path, folder: Path) -> None:
    """What does not hash to the digits in its name is never opened, downloaded or found in the folder."""
    fake = folder / "vgg11-00000000.pth"
    fake.symlink_to(imagenet_file)
    with pytest.raises(WeightsError, match="00000000"):
        bases.imagenet_base(fake.as_uri(), folder / "downloaded")
    assert list((folder / "downloaded").iterdir()) == []
    with pytest.raises(WeightsError, match="00000000"):
        bases.imagenet_base(f"http://127.0.0.1:9/{fake.name}", folder)


def test_a_name_without_digits_is_refused(folder: Path) -> None:
    """Without digits there is nothing to check, so nothing is downloaded."""
    with pytest.raises(WeightsError, match="--base FILE"):
        bases.imagenet_base("http://127.0.0.1:9/vgg11.pth", folder)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/vgg11-8a719046.pth", "file:///nowhere/vgg11-8a719046.pth"])
def test_no_network_is_said_in_one_sentence(url: str, folder: Path) -> None:
    """Where the file cannot be fetched the error names the other way, and nothing half is left behind."""
    with pytest.raises(UnavailableError, match="--base FILE"):
        bases.imagenet_base(url, folder)
    assert list(folder.iterdir()) == []


@pytest.fixture
def whole_tiny() -> dict[str, Tensor]:
    """All tensors of the tiny network."""
    return {name: torch.full(shape, 0.5) for name, shape in TINY.shapes().items()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("outputs", [3, 1000, None])
def test_file_base_drops_the_head(
    whole_tiny: dict[str, Tensor], suffix: str, outputs: int | None, tmp_path: Path
) -> None:
    """Both kinds of file are read, with a head of 3 or 1000 classes or none; what remains is the base."""
    expected = {name: tensor for name, tensor in whole_tiny.items() if not name.startswith("classifier.3.")}
    tensors = dict(expected)
    if outputs:
        tensors |= {"classifier.3.weight": torch.ones(outputs, 6), "classifier.3.bias": torch.ones(outputs)}
    path = tmp_path / f"base{suffix}"
    safetensors.torch.save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    assert same(bases.file_base(path, TINY), expected)


def test_file_base_becomes_float32(whole_tiny: dict[str, Tensor], tmp_path: Path) -> None:
    """A file in half precision is served like any other."""
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file({name: tensor.half() for name, tensor in whole_tiny.items()}, path)
    assert {tensor.dtype for tensor in bases.file_base(path, TINY).values()} == {torch.float32}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("write", ["pickle", "torch", "garbage", "empty", "absent"])
def test_a_file_that_is_no_state_dict_is_refused(suffix: str, write: str, tmp_path: Path) -> None:
    """A pickle runs nothing, and garbage, an empty and a missing file are said in one sentence."""
    proof, path = tmp_path / "ran", tmp_path / f"base{suffix}"
    if write == "pickle":
        path.write_bytes(pickle.dumps({"a": Evil(proof)}))
    elif write == "torch":
        torch.save({"a": Evil(proof)}, path)
    elif write != "absent":
        path.write_bytes(b"\x80garbage" * 9 if write == "garbage" else b"")
    with pytest.raises(WeightsError):
        bases.file_base(path, TINY)
    assert not proof.exists()


def test_a_base_of_another_network_is_refused(whole_tiny: dict[str, Tensor], tmp_path: Path) -> None:
    """Other names, other shapes, a missing tensor, numbers that are none, or no tensors at all."""
    name = "classifier.0.weight"
    wrong: list[object] = [
        {**whole_tiny, "extra": torch.ones(1)},
        {**whole_tiny, name: torch.ones(5, 48)},
        {key: tensor for key, tensor in whole_tiny.items() if key != name},
        {**whole_tiny, name: torch.full((6, 48), float("nan"))},
        {"epoch": 3},
        [torch.ones(1)],
    ]
    for index, content in enumerate(wrong):
        path = tmp_path / f"{index}.pth"
        torch.save(content, path)
        with pytest.raises(WeightsError):
            bases.file_base(path, TINY)
