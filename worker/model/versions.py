"""Versions, the frozen bases that they stand on, and pictures to compare engines on: files of the weights store.

    base/<sha256>.safetensors    versions/<id>/{manifest.json, delta.safetensors, ...}
    check/<sha256>.safetensors   shared by the versions on a base

What decides a version's verdicts, which its id is a digest of, never changes; what was found out about it may.
Verifies what it reads and replaces what it writes in one step; nothing is ever unpickled. Knows nothing of which
version is in service.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from worker.errors import UsageError, WeightsError
from worker.model import files as stored
from worker.model import manifest as manifests
from worker.model import network as networks
from worker.model import tensors as named
from worker.model.manifest import BaseRef, DeltaRef, FileRef, Manifest, ManifestDraft

MANIFEST_MAX_BYTES: Final = 4 * 1024 * 1024
"""No manifest comes near it; a larger one is refused before it is parsed."""

CHECK_MAX_BYTES: Final = 64 * 2**20

_EXTRA_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class VersionStore:
    """The store in the folder `root`. Reading needs no right to write and takes no lock."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def versions(self) -> list[str]:
        """The ids of all published versions, sorted; what is still being written has no version id as its name."""
        folder = self.root / "versions"
        with stored.usable(self.root):
            names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return sorted(name for name in names if manifests.VERSION_ID.fullmatch(name))

    def manifest(self, version_id: str) -> Manifest:
        """The manifest of a version, its id recomputed from its content. WeightsError where they differ."""
        path = f"versions/{_valid_id(version_id)}/manifest.json"
        with stored.open_inside(self.root, path, limit=MANIFEST_MAX_BYTES) as file:
            return manifests.parse(file.read(), version_id)

    def read_base(self, sha256: str, bytes_: int) -> dict[str, Tensor]:
        """The tensors of a base. WeightsError unless length and SHA-256 agree, which is seen before it is parsed.

        Takes twice the file's length of memory for a moment: the file is read once and hashed there, because
        mapping it instead would let a file that changes later change a network that was verified.
        """
        return self._tensors(_base_path(sha256), sha256, bytes_)

    def read_delta(self, manifest: Manifest) -> dict[str, Tensor]:
        """The tensors that training changed. WeightsError unless file and tensors are those the manifest names,
        and fit the network."""
        where = f"versions/{_valid_id(manifest.id)}/delta.safetensors"
        tensors = self._tensors(where, manifest.delta.sha256, manifest.delta.bytes)
        if tuple(sorted(tensors)) != manifest.delta.tensors or named.tensors_digest(tensors) != manifest.delta.digest:
            raise WeightsError(f"{where} holds other tensors than its manifest names: copy the version again")
        networks.check_tensors(networks.get(manifest.network), tensors, where)
        return tensors

    def verify(self, version_id: str) -> Manifest:
        """Reads all that serving the version needs, its base included. WeightsError where anything is amiss."""
        manifest = self.manifest(version_id)
        self.read_delta(manifest)
        self._check_base(manifest.base)
        return manifest

    def add_base(self, tensors: Mapping[str, Tensor], source: str) -> BaseRef:
        """Stores a frozen network, once however often it is added. `source` says where it comes from."""
        content = named.encode(tensors)
        base = BaseRef(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content), source=source)
        try:
            self._check_base(base)
        except WeightsError:  # not there, or damaged
            with stored.usable(self.root):
                stored.replace(
                    stored.folder_inside(self.root, "base") / f"{base.sha256}.safetensors", content, shared=True
                )
        return base

    def add_check_pictures(self, content: bytes) -> FileRef:
        """Stores what `check_pictures.encode` made, once however many versions name it."""
        sha256 = hashlib.sha256(content).hexdigest()
        with stored.usable(self.root):
            stored.replace(stored.folder_inside(self.root, "check") / f"{sha256}.safetensors", content, shared=True)
        return FileRef(sha256=sha256, bytes=len(content))

    def read_check_pictures(self, kept: FileRef) -> bytes:
        """The file that a manifest names. WeightsError unless length and SHA-256 agree."""
        return self._read(f"check/{kept.sha256}.safetensors", kept.sha256, min(kept.bytes, CHECK_MAX_BYTES))

    def publish(
        self, draft: ManifestDraft, delta: Mapping[str, Tensor], files: Mapping[str, bytes] | None = None
    ) -> Manifest:
        """Adds a version: the whole folder appears in one step, and is on disk when this returns.

        Of one that is already there under the same id, what decides verdicts stays as it is, and what was found out
        about it, on other test pictures for one, takes the place of what was before. `files` are put beside the
        manifest (report.html).
        Raises WeightsError where the delta does not fit the network or the base is not in the store, UsageError
        for a file name that is none.
        """
        for name in files or {}:
            if not _EXTRA_FILE.fullmatch(name) or name in ("manifest.json", "delta.safetensors"):
                raise UsageError(f"{name!r} cannot be a file's name in a version: use letters, digits, _ . -")
        networks.check_tensors(networks.get(draft.network), delta, "the delta")
        self._check_base(draft.base)
        content = named.encode(delta)
        digest = named.tensors_digest(delta)
        manifest = Manifest(
            **draft.model_dump(),
            id=manifests.identity(draft, digest),
            delta=DeltaRef(
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
                tensors=tuple(sorted(delta)),
                digest=digest,
            ),
        )
        written = {**(files or {}), "delta.safetensors": content, "manifest.json": manifest.to_json()}
        with stored.usable(self.root):
            folder = stored.folder_inside(self.root, "versions")
            if stored.add_folder(folder / manifest.id, written, shared=True):
                return manifest
        return self._found_out_anew(manifest, written)

    def _found_out_anew(self, manifest: Manifest, written: Mapping[str, bytes]) -> Manifest:
        standing = self.verify(manifest.id)
        made: dict[str, Any] = {
            name: standing.provenance[name] for name in ("created_at", "by") if name in standing.provenance
        }
        provenance: dict[str, Any] = {**manifest.provenance, **made}
        manifest = manifest.model_copy(
            update={"delta": standing.delta, "parent": standing.parent, "provenance": provenance}
        )
        folder = self.root / "versions" / manifest.id
        with stored.usable(self.root):
            for name in sorted(written.keys() - {"delta.safetensors", "manifest.json"}):  # the manifest is last
                stored.replace(folder / name, written[name], shared=True)
            stored.replace(folder / "manifest.json", manifest.to_json(), shared=True)
        return manifest

    def read_extra(self, version_id: str, name: str, limit: int) -> bytes | None:
        """What was put beside a version's manifest under `name`, None where nothing was. Not verified: the caller
        knows what it must be. WeightsError where it is longer than `limit` bytes or cannot be read."""
        try:
            with stored.open_inside(self.root, f"versions/{_valid_id(version_id)}/{name}", limit=limit) as file:
                return file.read()
        except stored.AbsentError:
            return None

    def remove_abandoned(self) -> None:
        """Removes what processes that were killed an hour ago and more had not finished writing."""
        with stored.usable(self.root):
            for folder in (self.root, *(self.root / name for name in ("base", "check", "versions"))):
                if folder.resolve().is_relative_to(self.root.resolve()):  # never through a link out of the store
                    stored.remove_abandoned(folder)

    def _tensors(self, relative: str, sha256: str, bytes_: int) -> dict[str, Tensor]:
        return named.decode(self._read(relative, sha256, bytes_), relative)

    def _read(self, relative: str, sha256: str, bytes_: int) -> bytes:
        with stored.open_inside(self.root, relative, length=bytes_) as file:
            content = file.read(bytes_)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise _changed(relative)
        return content

    def _check_base(self, base: BaseRef) -> None:
        relative = _base_path(base.sha256)
        with stored.open_inside(self.root, relative, length=base.bytes) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != base.sha256:
                raise _changed(relative)


def _valid_id(version_id: str) -> str:
    if not manifests.VERSION_ID.fullmatch(version_id):
        raise WeightsError(f"{version_id[:80]!r} is no version id: name one that `moderation-trainer list` shows")
    return version_id


def _base_path(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise WeightsError(f"{sha256[:80]!r} is no SHA-256 of a base: copy the version again")
    return f"base/{sha256}.safetensors"


def _changed(relative: str) -> WeightsError:
    return WeightsError(f"{relative} is not the file that was published, its SHA-256 differs: copy it again")
