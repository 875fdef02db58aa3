"""What a weights version says about itself, and the identity that follows from it.

Rules only: this module reads no file and knows neither torch nor the store's folders. Whoever has the bytes
compares them with what stands here.
"""

import hashlib
import json
import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from worker.errors import WeightsError
from worker.model.labels import LABELS
from worker.model.preprocessing import Preprocessing

VERSION_ID: Final = re.compile(r"[a-z][a-z0-9_]{0,31}-[0-9a-f]{12}", re.ASCII)
"""A version id: the network's name, a hyphen, 12 hex digits. The only text that may become a folder's name."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class BaseRef(_Frozen):
    """A frozen starting network: the file's SHA-256 (also its name), its length in bytes, where it came from."""

    sha256: Sha256
    bytes: Count
    source: str


class DeltaRef(_Frozen):
    """What training changed: the file's SHA-256 and length in bytes, the tensors' names in sorted order, and
    `digest`, the SHA-256 of the tensors themselves, which does not depend on how a file lays them out."""

    sha256: Sha256
    bytes: Count
    tensors: tuple[str, ...]
    digest: Sha256


class FileRef(_Frozen):
    """A file of the store: its SHA-256 and length in bytes."""

    sha256: Sha256
    bytes: Count


class EngineCheck(_Frozen):
    """An engine such as "cpu-bf16" compared with fp32 on `pictures` held-out pictures, of which `clear_pictures`
    are no close call; `flips` of those changed their label. Provenance, not identity."""

    pictures: Count
    clear_pictures: Count
    flips: Count
    passed: bool


class ManifestDraft(_Frozen):
    """Everything about a version that its maker says; the store adds the delta's digests and the id.

    `temperature` divides the logits before the softmax. Thresholds are probabilities of `risked`; without a
    `ban_threshold` the version never bans. `activation_ranges` are what int8 is scaled by, `check_pictures` what
    engines are compared on; both are provenance, not identity, for fp32 decides what is right. Raises WeightsError
    where labels or preprocessing are none that this code can serve, pydantic's ValidationError where a field has the
    wrong form.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    network: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    labels: tuple[str, ...] = LABELS
    preprocessing: dict[str, Any] = Field(default_factory=lambda: Preprocessing().to_json())
    base: BaseRef
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    ban_threshold: Probability | None = None
    ban_threshold_proven: bool = False
    review_threshold: Probability | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    parent: Annotated[str, Field(pattern=f"^{VERSION_ID.pattern}$")] | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    engines: dict[str, EngineCheck] = Field(default_factory=dict)
    activation_ranges: dict[str, tuple[Finite, Finite]] = Field(default_factory=dict)
    check_pictures: FileRef | None = None

    @field_validator("labels")
    @classmethod
    def _same_labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if labels != LABELS:
            raise WeightsError(
                f"the manifest's labels are {', '.join(labels)}, but this code serves {', '.join(LABELS)} in that "
                "order: publish the version again with those labels"
            )
        return labels

    @field_validator("preprocessing")
    @classmethod
    def _known_preprocessing(cls, document: dict[str, Any]) -> dict[str, Any]:
        return Preprocessing.from_json(document).to_json()


class Manifest(ManifestDraft):
    """A published version's manifest.json."""

    id: Annotated[str, Field(pattern=f"^{VERSION_ID.pattern}$")]
    delta: DeltaRef

    def to_json(self) -> bytes:
        """The bytes of manifest.json: indented, UTF-8, `schema` and `id` first."""
        document = json.loads(self.model_dump_json(by_alias=True))
        first = {"schema": document.pop("schema"), "id": document.pop("id")}
        return (json.dumps(first | document, indent=2, ensure_ascii=False) + "\n").encode()


def identity(draft: ManifestDraft, delta_digest: str) -> str:
    """The id of a version: the network's name and 12 hex digits of the SHA-256 of what decides its verdicts.

    That is the canonical JSON (sorted keys, no spaces) of the delta's tensor digest, the base's SHA-256, network,
    labels, preprocessing, temperature and thresholds. Time, author and metrics are not part of it.
    """
    decides = {
        "schema": draft.schema_,
        "network": draft.network,
        "labels": draft.labels,
        "preprocessing": draft.preprocessing,
        "base": draft.base.sha256,
        "delta": delta_digest,
        "temperature": draft.temperature,
        "ban_threshold": draft.ban_threshold,
        "review_threshold": draft.review_threshold,
    }
    canonical = json.dumps(decides, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{draft.network}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def parse(content: bytes, version_id: str) -> Manifest:
    """The manifest in `content`, which lies in the folder `version_id`.

    Raises WeightsError unless it is well formed and its id is both the folder's name and the identity that
    follows from its own content.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = repr(".".join(map(str, first["loc"]))) if first["loc"] else "the document"  # a name may hold anything
        raise WeightsError(
            f"the manifest of {version_id} is damaged at {where} ({first['msg']}): copy the version again or "
            "promote another"
        ) from None
    recomputed = identity(manifest, manifest.delta.digest)
    if not manifest.id == recomputed == version_id:
        raise WeightsError(
            f"the manifest in {version_id} calls itself {manifest.id} but its content makes {recomputed}: it was "
            "changed after publishing, copy the version again or promote another"
        )
    return manifest
