"""The verdict document: what is published about one content ID.

Two types, so that an undecided outcome is not a verdict with holes. Values are frozen and check themselves when
built. Knows the contract's fields and rules between them; knows no Redis, thresholds' origin, or network.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)

from worker.errors import UNDECIDED_REASONS, UndecidedReason, UsageError

CONTENT_ID_PATTERN = r"^[A-Za-z0-9_-]{1,128}\Z"
ContentId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
Label = Literal["approved", "not_suitable", "risked"]
Placement = Literal["collective", "author_only", "held", "removed"]
ReviewPlacement = Literal["held", "author_only"]
Note = Literal["circuit_breaker", "human", "known_content", "audit_sample"]
NOTES: Final[tuple[str, ...]] = get_args(Note)
# A later release may have others; a reader from before must not lose a verdict over one.
LaterReason = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]

PLACEMENTS: dict[Label, Placement] = {"approved": "collective", "not_suitable": "author_only"}
"""Where a picture goes that is neither banned nor waits for a person."""


def _from_text(moment: object) -> object:
    # Not pydantic's own reading, which takes "1" for a second after midnight, 1970.
    return datetime.fromisoformat(moment) if isinstance(moment, str) else moment


def _as_written(moment: datetime) -> datetime:
    """UTC to the millisecond, so that a document read back equals the one that was written."""
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("this moment is out of range") from None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def format_time(moment: datetime) -> str:
    """UTC with milliseconds and a Z, as everywhere in the contract."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_from_text),
    AfterValidator(_as_written),
    PlainSerializer(format_time, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
MomentText = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z$")]


class Probabilities(BaseModel):
    """p(label) of the frame that decided; sums to 1 within rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    approved: Probability
    not_suitable: Probability
    risked: Probability

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        if abs(self.approved + self.not_suitable + self.risked - 1.0) > 0.01:
            raise ValueError("probabilities must sum to 1")
        return self


class _Document(BaseModel):
    """What both outcomes carry, in the contract's order, in which it is written.

    `decided_at` and `supersedes` are set by the publish step, on Redis's clock. Fields that a later release has added
    are left out: readers and workers of two releases run side by side.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", strict=True, json_schema_serialization_defaults_required=True
    )

    schema_version: Literal[1] = Field(default=1, alias="schema")
    content_id: ContentId
    status: str
    label: Label | None
    ban: bool
    review: bool
    placement: Placement
    reasons: tuple[str, ...]
    probabilities: Probabilities | None
    weights: str | None
    engine: str | None
    ban_threshold: Probability | None = None
    review_threshold: Probability | None = None
    content_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None
    frames: int = Field(ge=0)
    enqueued_at: Moment
    decided_at: Moment | None = None
    supersedes: MomentText | None = Field(
        default=None, description="decided_at of the verdict on the same content ID that this one replaces"
    )

    def to_json(self) -> str:
        """The document as compact JSON, in the contract's field names."""
        return self.model_dump_json(by_alias=True)

    def to_dict(self) -> dict[str, Any]:
        """The document as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)


class Verdict(_Document):
    """A decided picture."""

    status: Literal["decided"] = "decided"
    label: Label
    reasons: tuple[Note | LaterReason, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not set(self.reasons).isdisjoint(UNDECIDED_REASONS):
            raise ValueError("a decided picture has none of the reasons of an undecided one")
        if self.ban and (self.label != "risked" or self.review):
            raise ValueError("only a risked verdict that needs no review is a ban")
        if (self.placement == "removed") != self.ban:
            raise ValueError("a picture is removed exactly with a ban")
        if self.label == "risked" and not (self.ban or self.review):
            raise ValueError("a risked verdict is a ban or for review")
        if self.placement == "collective" and self.label != "approved":
            raise ValueError("only an approved picture goes into the common feed")
        if self.placement == "held" and not self.review:
            raise ValueError("a picture is held only for review")
        return self


class Undecided(_Document):
    """A picture that could not be judged: always for a person, never evidence against its author."""

    status: Literal["undecided"] = "undecided"
    label: None = None
    ban: Literal[False] = False
    review: Literal[True] = True
    placement: ReviewPlacement
    reasons: tuple[UndecidedReason | LaterReason, ...] = Field(min_length=1)
    probabilities: None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not set(self.reasons).isdisjoint(NOTES):
            raise ValueError("an undecided picture has none of the reasons of a decided one")
        return self


def by_person(document: "Verdict | Undecided", label: Label, note: Note) -> Verdict:
    """What a person decided, in place of `document` on the same content ID; names no weights, for none decided."""
    ban = label == "risked"
    return Verdict(
        content_id=document.content_id,
        label=label,
        ban=ban,
        review=False,
        placement="removed" if ban else PLACEMENTS[label],
        reasons=(note,),
        probabilities=None,
        weights=None,
        engine=None,
        content_sha256=document.content_sha256,
        frames=document.frames,
        enqueued_at=document.enqueued_at,
    )


def withheld(ban: Verdict, placement: ReviewPlacement) -> Verdict:
    """What a ban is while the circuit breaker is open: as risked as before, and a person's to decide."""
    reasons = (*ban.reasons, "circuit_breaker")
    return ban.model_copy(update={"ban": False, "review": True, "placement": placement, "reasons": reasons})


def unset_last_fields(document: "Verdict | Undecided") -> str:
    """The document's JSON up to `decided_at`, as the scripts take it that set the last two fields."""
    return document.to_json().removesuffix(',"decided_at":null,"supersedes":null}') + "}"


Document = Annotated[Verdict | Undecided, Field(discriminator="status")]

_adapter: TypeAdapter[Verdict | Undecided] = TypeAdapter(Document)


def parse(document: str | bytes) -> Verdict | Undecided:
    """Reads a document back; raises pydantic's ValidationError (a ValueError) for one that breaks the rules."""
    return _adapter.validate_json(document)


def read(document: str | bytes | None) -> Verdict | Undecided | None:
    """As `parse`, but None for nothing and for what is no verdict of ours: whoever wrote it, nothing stands there."""
    try:
        return None if document is None else parse(document)
    except ValueError:
        return None


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the document as it is written, every field present, generated from these types."""
    schema = _adapter.json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def check_content_id(content_id: object) -> str:
    """Returns the ID; raises UsageError where it is not 1 to 128 characters of `A-Z a-z 0-9 _ -`."""
    if not isinstance(content_id, str) or re.match(CONTENT_ID_PATTERN, content_id) is None:
        shown = repr(content_id)[:80]
        raise UsageError(f"{shown} is not a content ID: use 1 to 128 characters of A-Z a-z 0-9 _ and -.")
    return content_id
