"""The verdict document: what cannot be, cannot be built; what is written is the contract's, to the letter."""

import json
from datetime import UTC, datetime, timedelta, timezone
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import UNDECIDED_REASONS, UsageError
from worker.verdict import (
    Label,
    Placement,
    Probabilities,
    Undecided,
    Verdict,
    check_content_id,
    format_time,
    json_schema,
    parse,
)

VALIDATOR = jsonschema.Draft202012Validator(json_schema())
SHA256 = "0123456789abcdef" * 4
EXAMPLE = (
    '{"schema":1,"content_id":"H6f8XI2i8","status":"decided","label":"approved","ban":false,'
    '"review":false,"placement":"collective","reasons":[],'
    '"probabilities":{"approved":0.8528,"not_suitable":0.0996,"risked":0.0475},'
    '"weights":"vgg11-3f9c0a71b2d4","engine":"cpu-bf16","ban_threshold":0.62,"review_threshold":0.31,'
    f'"content_sha256":"{SHA256}","frames":1,"enqueued_at":"2026-11-24T02:00:00.000Z",'
    '"decided_at":"2026-11-24T02:00:00.140Z","supersedes":null}'
)
UNDECIDED_EXAMPLE = (
    '{"schema":1,"content_id":"H6f8XI2i8","status":"undecided","label":null,"ban":false,'
    '"review":true,"placement":"held","reasons":["unreadable"],"probabilities":null,'
    '"weights":null,"engine":null,"ban_threshold":null,"review_threshold":null,'
    f'"content_sha256":"{SHA256}","frames":0,"enqueued_at":"2026-11-24T02:00:00.000Z",'
    '"decided_at":"2026-11-24T02:00:00.140Z","supersedes":"2026-11-24T01:00:00.000Z"}'
)


def changed(example: str = EXAMPLE, **fields: object) -> str:
    """The example with other values in some fields."""
    return json.dumps(json.loads(example) | fields)


moments = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))
ids = st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)
shares = st.floats(0, 1)


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    """Any decided document that the rules allow."""
    label: Label = draw(st.sampled_from(["approved", "not_suitable", "risked"]))
    ban = label == "risked" and draw(st.booleans())
    review = not ban and (label == "risked" or draw(st.booleans()))
    allowed: list[Placement] = ["removed"] if ban else ["author_only"]
    allowed += ["held"] if review else []
    allowed += ["collective"] if label == "approved" else []
    risked = draw(shares)
    return Verdict(
        content_id=draw(ids),
        label=label,
        ban=ban,
        review=review,
        placement=draw(st.sampled_from(allowed)),
        reasons=tuple(draw(st.lists(st.sampled_from(["circuit_breaker", "human", "known_content", "audit_sample"])))),
        probabilities=draw(st.none() | st.just(Probabilities(approved=1 - risked, not_suitable=0.0, risked=risked))),
        weights=draw(st.none() | st.just("vgg11-3f9c0a71b2d4")),
        engine=draw(st.none() | st.text(max_size=20)),
        ban_threshold=draw(st.none() | shares),
        review_threshold=draw(st.none() | shares),
        content_sha256=draw(st.none() | st.just(SHA256)),
        frames=draw(st.integers(0, 64)),
        enqueued_at=draw(moments),
        decided_at=draw(st.none() | moments),
        supersedes=draw(st.none() | moments.map(format_time)),
    )


@st.composite
def undecideds(draw: st.DrawFn) -> Undecided:
    """Any undecided document that the rules allow."""
    return Undecided(
        content_id=draw(ids),
        placement=draw(st.sampled_from(["held", "author_only"])),
        reasons=(draw(st.sampled_from(UNDECIDED_REASONS)),),
        weights=None,
        engine=None,
        content_sha256=draw(st.none() | st.just(SHA256)),
        frames=draw(st.integers(0, 64)),
        enqueued_at=draw(moments),
        decided_at=draw(st.none() | moments),
    )


@pytest.mark.parametrize("example", [EXAMPLE, UNDECIDED_EXAMPLE])
def test_the_contracts_example_is_written_to_the_letter(example: str) -> None:
    """Field order, number and time formats are the contract's."""
    assert parse(example).to_json() == example
    assert parse(example.encode()).to_dict() == json.loads(example)


@settings(deadline=None)
@given(verdicts() | undecideds())
def test_a_document_read_back_is_the_one_written(document: Verdict | Undecided) -> None:
    """Nothing is lost on the way through JSON."""
    assert parse(document.to_json()) == document


@settings(deadline=None)
@given(verdicts() | undecideds())
def test_documents_fulfil_the_published_schema(document: Verdict | Undecided) -> None:
    """Whatever can be built and written is valid under the schema that other systems generate code from."""
    VALIDATOR.validate(json.loads(document.to_json()))


def test_the_shipped_schema_is_the_generated_one() -> None:
    """`worker/verdict.schema.json` is what `json_schema()` gives, and itself a valid schema."""
    shipped = files("worker").joinpath("verdict.schema.json").read_text(encoding="utf-8")
    assert shipped == json.dumps(json_schema(), indent=2) + "\n"
    jsonschema.Draft202012Validator.check_schema(json.loads(shipped))


IMPOSSIBLE = {
    "a ban without risked": changed(ban=True, placement="removed"),
    "a ban for review": changed(label="risked", ban=True, review=True, placement="removed"),
    "a ban that leaves the picture": changed(label="risked", ban=True, placement="held"),
    "removed without a ban": changed(label="risked", review=True, placement="removed"),
    "risked and nobody asked": changed(label="risked", placement="author_only"),
    "risked in the common feed": changed(label="risked", review=True, placement="collective"),
    "not suitable in the common feed": changed(label="not_suitable"),
    "held and nobody asked": changed(placement="held"),
    "a placement that is none": changed(placement="everywhere"),
    "a label that is none": changed(label="nice"),
    "decided without a label": changed(label=None),
    "decided for an undecided one's reason": changed(reasons=["unreadable"]),
    "a reason that is none": changed(reasons=["Because of this"]),
    "probabilities of two labels": changed(probabilities={"approved": 0.5, "risked": 0.5}),
    "probabilities that sum to 2": changed(probabilities={"approved": 1.0, "not_suitable": 0.5, "risked": 0.5}),
    "a negative probability": changed(probabilities={"approved": 1.5, "not_suitable": 0.0, "risked": -0.5}),
    "a probability that is no number": EXAMPLE.replace("0.8528", "NaN"),
    "a threshold above 1": changed(ban_threshold=1.5),
    "undecided with a label": changed(UNDECIDED_EXAMPLE, label="approved"),
    "undecided with a ban": changed(UNDECIDED_EXAMPLE, ban=True),
    "undecided and nobody asked": changed(UNDECIDED_EXAMPLE, review=False),
    "undecided and removed": changed(UNDECIDED_EXAMPLE, placement="removed"),
    "undecided in the common feed": changed(UNDECIDED_EXAMPLE, placement="collective"),
    "undecided without a reason": changed(UNDECIDED_EXAMPLE, reasons=[]),
    "undecided with probabilities": changed(
        UNDECIDED_EXAMPLE, probabilities={"approved": 1.0, "not_suitable": 0.0, "risked": 0.0}
    ),
    "another schema": changed(schema=2),
    "a status that is none": changed(status="maybe"),
    "a field too few": json.dumps({k: v for k, v in json.loads(EXAMPLE).items() if k != "frames"}),
    "a malformed content ID": changed(content_id="../../etc/passwd"),
    "a content ID and a newline": changed(content_id="H6f8XI2i8\n"),
    "a hash that is none": changed(content_sha256="abc"),
    "fewer than no frames": changed(frames=-1),
    "a truth that is a word": changed(ban="no"),
    "a number that is a text": changed(frames="1"),
    "a moment that is a number": changed(enqueued_at=1764000000),
    "a moment that is a number in a text": changed(enqueued_at="1764000000"),
    "a moment nobody knows where": changed(enqueued_at="2026-11-24T02:00:00.000"),
    "a moment outside the calendar": changed(enqueued_at="9999-12-31T23:59:59.000-01:00"),
    "superseding what is no moment": changed(supersedes="the last one"),
}


@pytest.mark.parametrize("document", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_impossible_documents_are_refused(document: str) -> None:
    """A document that breaks a rule cannot be read, so that no reader has to ask whether it may act on it."""
    with pytest.raises(ValueError, match=r"\S"):
        parse(document)


@settings(deadline=None)
@given(st.binary() | st.text())
def test_garbage_raises_value_error_only(garbage: bytes | str) -> None:
    """Whatever lies under a verdict's key, reading it raises a ValueError and nothing else."""
    with pytest.raises(ValueError, match=r"\S"):
        parse(garbage)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.sampled_from([EXAMPLE, UNDECIDED_EXAMPLE]), st.sampled_from(list(json.loads(EXAMPLE))), json_values
)  # fmt: skip
def test_a_document_with_one_field_astray_is_refused_or_valid(example: str, field: str, value: Any) -> None:
    """Whatever stands in one field: ValueError, or a document that is valid under the schema when written again."""
    try:
        document = parse(changed(example, **{field: value}))
    except ValueError:
        return
    VALIDATOR.validate(json.loads(document.to_json()))


def test_documents_are_frozen() -> None:
    """A verdict cannot be changed after it was checked."""
    with pytest.raises(ValueError, match="frozen"):
        parse(EXAMPLE).placement = "removed"


def test_times_are_written_in_utc_to_the_millisecond() -> None:
    """A moment in another zone, or finer than a millisecond, is written as the contract's format has it."""
    moment = datetime(2026, 11, 24, 3, 30, 0, 140_999, timezone(timedelta(hours=1, minutes=30)))
    assert format_time(moment) == "2026-11-24T02:00:00.140Z"
    document = parse(changed(enqueued_at="2026-11-24T03:30:00.140999+01:30"))
    assert document.to_dict()["enqueued_at"] == "2026-11-24T02:00:00.140Z"


@settings(deadline=None)
@given(ids)
def test_a_well_formed_content_id_is_returned(content_id: str) -> None:
    """1 to 128 of the allowed characters."""
    assert check_content_id(content_id) == content_id


@pytest.mark.parametrize(
    "content_id",
    ["", "a" * 129, "a b", "a\n", "\n", "../a", "a/b", "a.jpg", "ä", "a\x00", "٣", None, 5, b"abc", ["abc"], "{id}"],
)
def test_a_malformed_content_id_is_refused_in_one_sentence(content_id: object) -> None:
    """UsageError, short whatever was given, and it says what an ID looks like."""
    with pytest.raises(UsageError, match="1 to 128 characters of A-Z a-z 0-9 _ and -") as raised:
        check_content_id(content_id)
    assert len(str(raised.value)) < 200


@settings(deadline=None)
@given(st.text())
def test_an_id_is_accepted_exactly_where_its_document_is(content_id: str) -> None:
    """What `check_content_id` lets through, a document lets through, and nothing else."""
    try:
        check_content_id(content_id)
    except UsageError:
        with pytest.raises(ValueError, match="content_id"):
            parse(changed(content_id=content_id))
    else:
        assert parse(changed(content_id=content_id)).content_id == content_id
