"""A store that somebody damaged, by accident or on purpose: each damage is one WeightsError, and nothing runs."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.evil import Evil
from tests.tiny_network import TINY
from trainer.bases import random_base
from worker.errors import WeightsError
from worker.model import network
from worker.model.manifest import Manifest, ManifestDraft, identity
from worker.model.weights import WeightsStore


class Shelf:
    """A store with one promoted version, and the paths of its files."""

    def __init__(self, root: Path) -> None:
        network.register(TINY)
        self.store = WeightsStore(root)
        self.base = self.store.add_base(random_base(TINY, seed=1), "random:1")
        delta = {"classifier.3.weight": torch.ones(3, 6), "classifier.3.bias": torch.zeros(3)}
        self.id = self.store.publish(ManifestDraft(network="tiny", base=self.base), delta).id
        self.store.promote(self.id, by="test", why="test")
        self.folder = root / "versions" / self.id
        self.manifest_path = self.folder / "manifest.json"
        self.delta_path = self.folder / "delta.safetensors"
        self.base_path = root / "base" / f"{self.base.sha256}.safetensors"

    def serve(self) -> None:
        """What a worker does: champion, manifest, base, delta."""
        champion = self.store.champion()
        assert champion is not None
        manifest = self.store.manifest(champion)
        self.store.read_base(manifest.base.sha256, manifest.base.bytes)
        self.store.read_delta(manifest)

    def edit_manifest(self, **changes: Any) -> None:
        document = json.loads(self.manifest_path.read_text())
        self.manifest_path.write_text(json.dumps(document | changes))

    def forge(self, content: bytes) -> None:
        """Puts `content` in the delta's place with a manifest that vouches for its length and SHA-256."""
        document = json.loads(self.manifest_path.read_text())
        forged = {**document["delta"], "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        self.delta_path.write_bytes(content)
        self.edit_manifest(delta=forged)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A store that serves, as the test itself sees first."""
    made = Shelf(tmp_path / "weights")
    made.serve()
    return made


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(WeightsError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("which", ["base_path", "delta_path"])
def test_truncated(shelf: Shelf, which: str) -> None:
    """A file cut short is seen by its length."""
    path: Path = getattr(shelf, which)
    path.write_bytes(path.read_bytes()[:-1])
    assert "bytes where" in refusal(shelf.serve)


@pytest.mark.parametrize("which", ["base_path", "delta_path"])
def test_one_bit_flipped(shelf: Shelf, which: str) -> None:
    """One bit is enough to be refused, at serving and at promotion."""
    flip_a_bit(getattr(shelf, which))
    assert "SHA-256" in refusal(shelf.serve)
    (shelf.store.root / "champion").unlink()
    assert "SHA-256" in refusal(lambda: shelf.store.promote(shelf.id, by="a", why=""))
    assert shelf.store.champion() is None


def test_labels_swapped(shelf: Shelf) -> None:
    """`approved` and `risked` exchanged would ban the innocent; no identity makes it acceptable."""
    shelf.edit_manifest(labels=["risked", "not_suitable", "approved"])
    assert "labels" in refusal(shelf.serve)


@pytest.mark.parametrize(
    "change",
    [{"ban_threshold": 0.01}, {"review_threshold": 1.0}, {"temperature": 9.0}, {"network": "vgg11"}],
)
def test_numbers_that_decide_changed(shelf: Shelf, change: dict[str, Any]) -> None:
    """A threshold lowered by hand no longer matches the id that verdicts would name."""
    shelf.edit_manifest(**change)
    assert "changed after publishing" in refusal(shelf.serve)


def test_other_preprocessing(shelf: Shelf) -> None:
    """Other preprocessing is another version, and one that this code lacks is refused even with a fitting id."""
    document = json.loads(shelf.manifest_path.read_text())["preprocessing"]
    shelf.edit_manifest(preprocessing={**document, "resize": 224})
    assert "changed after publishing" in refusal(shelf.serve)
    shelf.edit_manifest(preprocessing={**document, "interpolation": "lanczos"})
    assert "preprocessing" in refusal(shelf.serve)


def test_a_whole_version_under_another_id(shelf: Shelf) -> None:
    """A folder renamed to another id is not that version."""
    other = "tiny-0123456789ab"
    shutil.copytree(shelf.folder, shelf.folder.with_name(other))
    (shelf.store.root / "champion").write_text(other)
    assert "changed after publishing" in refusal(shelf.serve)


@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_a_pickle_in_disguise(shelf: Shelf, write: str, tmp_path: Path) -> None:
    """A pickle named .safetensors never runs, even where the manifest vouches for its digest."""
    proof, path = tmp_path / "ran", tmp_path / "evil"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Evil(proof)))
    else:
        torch.save(Evil(proof), path)
    shelf.forge(path.read_bytes())
    assert "no safetensors file" in refusal(shelf.serve)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    (shelf.store.root / "base" / f"{sha256}.safetensors").write_bytes(content)
    assert "no safetensors file" in refusal(lambda: shelf.store.read_base(sha256, len(content)))
    assert not proof.exists()


def test_other_tensors_with_a_fitting_file_digest(shelf: Shelf) -> None:
    """File length and SHA-256 forged to fit: the tensors' own digest, which makes the id, still tells."""
    content = bytearray(shelf.delta_path.read_bytes())
    content[-1] ^= 0x80
    shelf.forge(bytes(content))
    assert "other tensors" in refusal(shelf.serve)


@pytest.mark.parametrize("which", ["base_path", "delta_path", "manifest_path", "folder"])
def test_a_symlink_out_of_the_store(shelf: Shelf, which: str, tmp_path: Path) -> None:
    """Even the very same content is not read from elsewhere."""
    path: Path = getattr(shelf, which)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "link out of the store" in refusal(shelf.serve)


def test_a_symlink_out_of_the_store_is_not_written_through(shelf: Shelf, tmp_path: Path) -> None:
    """A `base` folder that leads elsewhere receives nothing."""
    elsewhere = tmp_path / "elsewhere"
    (shelf.store.root / "base").rename(elsewhere)
    (shelf.store.root / "base").symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    assert "link out of the store" in refusal(lambda: shelf.store.add_base({"a": torch.ones(1)}, "x"))
    assert sorted(elsewhere.iterdir()) == before


@pytest.mark.parametrize("name", ["history.jsonl", ".lock"])
def test_a_linked_file_is_not_appended_to(shelf: Shelf, name: str, tmp_path: Path) -> None:
    """A history or lock that is a link changes nothing where it leads."""
    (tmp_path / "elsewhere").write_bytes(b"")
    (shelf.store.root / "champion").unlink()
    (shelf.store.root / name).unlink()
    (shelf.store.root / name).symlink_to(tmp_path / "elsewhere")
    refusal(lambda: shelf.store.promote(shelf.id, by="a", why=""))
    assert (tmp_path / "elsewhere").read_bytes() == b""
    assert shelf.store.champion() is None


def test_a_file_in_the_way_of_the_store(tmp_path: Path) -> None:
    """A store that cannot be written says so in one sentence."""
    (tmp_path / "weights").write_bytes(b"")
    store = WeightsStore(tmp_path / "weights")
    assert "cannot be used" in refusal(lambda: store.add_base({"a": torch.ones(1)}, "x"))
    assert "cannot be used" in refusal(lambda: store.rollback(by="a", why=""))


def test_a_link_that_leads_to_itself(shelf: Shelf) -> None:
    """Reading ends, in one sentence."""
    shelf.delta_path.unlink()
    shelf.delta_path.symlink_to(shelf.delta_path)
    refusal(shelf.serve)


def test_a_named_pipe(shelf: Shelf) -> None:
    """A pipe in a file's place is refused at once instead of waiting for its writer."""
    shelf.manifest_path.unlink()
    os.mkfifo(shelf.manifest_path)
    assert "no ordinary file" in refusal(shelf.serve)


@pytest.mark.parametrize("missing", ["manifest_path", "delta_path", "base_path"])
def test_half_copied(shelf: Shelf, missing: str) -> None:
    """A version copied without one of its files says which one."""
    path: Path = getattr(shelf, missing)
    path.unlink()
    assert path.name in refusal(shelf.serve)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": 1}', b"[" * 100_000])
def test_a_manifest_that_is_none(shelf: Shelf, content: bytes) -> None:
    """Whatever stands there instead of a manifest, however deep, is said in one sentence."""
    shelf.manifest_path.write_bytes(content)
    assert "damaged" in refusal(shelf.serve)


def test_a_manifest_without_end(shelf: Shelf) -> None:
    """A manifest of many megabytes is refused before it is read."""
    with shelf.manifest_path.open("ab") as file:
        file.truncate(2**33)
    assert "longer than" in refusal(shelf.serve)


def test_champion_naming_nothing(shelf: Shelf) -> None:
    """A champion that is no version of this store."""
    (shelf.store.root / "champion").write_text("tiny-0123456789ab\n")
    assert "not in the store" in refusal(shelf.serve)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"../../etc/passwd",
        b"tiny-0123456789AB",
        b"tiny-0123456789ab\n\n",
        b"tiny-0123456789ab/../x",
        b"\0",
        "tiny-０１２３４５６７８９ab".encode(),
        b"x" * 5000,
    ],
)
@pytest.mark.parametrize("pointer", ["champion", "challenger"])
def test_a_pointer_that_holds_no_version_id(shelf: Shelf, pointer: str, content: bytes) -> None:
    """Only a version id ever becomes part of a path."""
    (shelf.store.root / pointer).write_bytes(content)
    refusal(getattr(shelf.store, pointer))


@pytest.mark.parametrize("version_id", ["", "..", "../x", "/etc", "tiny-0123456789ab\n", "tiny-0123456789ab/", "\0"])
def test_an_id_that_is_a_path(shelf: Shelf, version_id: str) -> None:
    """An id from outside is checked before it touches a path, whatever is asked of the store."""
    refusal(lambda: shelf.store.manifest(version_id))
    refusal(lambda: shelf.store.promote(version_id, by="a", why=""))
    refusal(lambda: shelf.store.set_challenger(version_id))


def test_a_base_named_by_a_path(shelf: Shelf) -> None:
    """A base's digest from outside is checked before it touches a path."""
    refusal(lambda: shelf.store.read_base("../" * 20 + "etc/passwd", 5))


def test_a_dangling_champion(shelf: Shelf) -> None:
    """A link to nowhere is damage, not an empty store."""
    champion = shelf.store.root / "champion"
    champion.unlink()
    champion.symlink_to("nowhere")
    refusal(shelf.store.champion)


def test_a_damaged_line_of_history(shelf: Shelf) -> None:
    """A line that is no entry is named by its number."""
    with (shelf.store.root / "history.jsonl").open("a") as file:
        file.write("{}\n")
    assert "line 2" in refusal(shelf.store.history)


def test_foreign_folders_are_no_versions(shelf: Shelf) -> None:
    """What is left of a writer that was killed, or put there by hand, is not listed."""
    for name in (".0123456789abcdef.tmp", "lost+found", "tiny-0123"):
        (shelf.folder.parent / name).mkdir()
    assert shelf.store.versions() == [shelf.id]


def test_a_delta_for_another_network(shelf: Shelf) -> None:
    """A version that fits its own id but not its network's shapes is refused."""
    document = json.loads(shelf.manifest_path.read_text())
    draft = {name: value for name, value in document.items() if name not in ("id", "delta")} | {"network": "vgg11"}
    version_id = identity(ManifestDraft.model_validate(draft), document["delta"]["digest"])
    shelf.edit_manifest(network="vgg11", id=version_id)
    shelf.folder.rename(shelf.folder.with_name(version_id))
    manifest = shelf.store.manifest(version_id)
    assert isinstance(manifest, Manifest)
    assert "another network" in refusal(lambda: shelf.store.read_delta(manifest))
