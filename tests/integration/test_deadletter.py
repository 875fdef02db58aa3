"""The dead letters on a real server, through the package and through the command: list, replay, drop."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import redis

from tests.support.worker import Broker
from worker import bus, connection, deadletter
from worker.entry import Entry
from worker.errors import UnavailableError, UsageError
from worker.intake import Intake

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def redis_client(broker: Broker) -> redis.Redis:
    """As the rooms of the package connect."""
    return connection.connect(broker.url)


@pytest.fixture
def intake(redis_client: redis.Redis) -> Intake:
    """A consumer with its groups."""
    made = Intake(redis_client, "test", 15)
    made.ensure_groups()
    return made


@pytest.fixture
def command(broker: Broker) -> Command:
    """Runs `moderation` with these words."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "worker.cli", *words],
            env={**os.environ, "MODERATION_REDIS_URL": broker.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def waiting(client: redis.Redis, stream: str) -> list[dict[bytes, bytes]]:
    """The fields of every entry in a stream."""
    return [fields for _, fields in bus.range_stream(client, stream, "-", count=1000)]


def test_letters_are_listed_oldest_first(redis_client: redis.Redis) -> None:
    """All of them, however many, with all that was said when they were buried."""
    for number in range(503):
        deadletter.bury(redis_client, f"c{number}", "killed_its_worker", f"detail {number}", rescan=number % 2 == 1)
    letters = list(deadletter.letters(redis_client))
    assert [letter.content_id for letter in letters] == [f"c{number}" for number in range(503)]
    assert (letters[7].reason, letters[7].detail, letters[7].rescan) == ("killed_its_worker", "detail 7", True)
    assert letters[7].stream == bus.UPLOADS
    assert abs(letters[7].failed_ms - bus.now_ms(redis_client)) < 60_000


def test_what_is_no_text_can_be_buried(redis_client: redis.Redis) -> None:
    """A Celery task's JSON may hold halves of characters, which no UTF-8 has."""
    deadletter.bury(redis_client, "\ud83d", "malformed_id", "\udcff", rescan=False)
    (letter,) = deadletter.letters(redis_client)
    assert (letter.content_id, letter.detail) == ("\\ud83d", "\\udcff")


def test_no_letters_is_an_empty_list(redis_client: redis.Redis) -> None:
    """Also where the key does not exist yet."""
    assert list(deadletter.letters(redis_client)) == []


@pytest.mark.parametrize("content_id", [b"../../etc/passwd", b"\xff\xfe\x00", b"a" * 4000, b"", None])
def test_an_entry_with_a_malformed_id_becomes_a_letter(
    redis_client: redis.Redis, intake: Intake, content_id: bytes | None
) -> None:
    """It leaves the intake in the same step; its ID is kept as far as it can be told, cut to 128 bytes."""
    fields: dict[bytes, bytes] = {b"colour": b"red"} if content_id is None else {b"content_id": content_id}
    redis_client.xadd(bus.BACKFILL, fields)
    assert intake.read([bus.BACKFILL], 10) == []
    assert waiting(redis_client, bus.BACKFILL) == []
    (letter,) = deadletter.letters(redis_client)
    assert (letter.reason, letter.stream) == ("malformed_id", bus.BACKFILL)
    assert letter.content_id == (content_id or b"")[:128].decode("utf-8", "backslashreplace")
    with pytest.raises(UsageError, match="content ID"):
        deadletter.replay(redis_client, letter.id)
    assert list(deadletter.letters(redis_client)) == [letter]


def test_an_entry_without_the_field_is_kept(redis_client: redis.Redis, intake: Intake) -> None:
    """A producer that misspells it sends content IDs all the same; whatever it was is cut to 512 bytes."""
    redis_client.xadd(bus.UPLOADS, {"contentId": "H6f8XI2i8", b"\xff": b"\x00" * 4000})
    assert intake.read([bus.UPLOADS], 10) == []
    (letter,) = deadletter.letters(redis_client)
    assert letter.detail.startswith("no field content_id. Sent: contentId=H6f8XI2i8 \\xff=\x00")
    assert len(letter.detail) < 600


def test_a_replayed_letter_goes_to_the_end_of_its_stream(redis_client: redis.Redis, intake: Intake) -> None:
    """It is gone from the dead letters, and a worker gets it like any other entry, a rescan as a rescan."""
    redis_client.xadd(bus.BACKFILL, {"content_id": "waits"})
    redis_client.xadd(
        bus.DEAD_LETTER,
        {"content_id": "dead", "reason": "killed_its_worker", "stream": bus.BACKFILL, "rescan": 1, "failed_ms": 5},
    )
    (letter,) = deadletter.letters(redis_client)
    assert deadletter.replay(redis_client, letter.id) == letter
    assert list(deadletter.letters(redis_client)) == []
    taken: list[Entry] = intake.read([bus.BACKFILL], 10)
    assert [(entry.content_id, entry.rescan, entry.deliveries) for entry in taken] == [
        ("waits", False, 1),
        ("dead", True, 1),
    ]
    assert waiting(redis_client, bus.UPLOADS) == []


def test_a_letter_from_elsewhere_is_replayed_into_the_uploads(redis_client: redis.Redis) -> None:
    """Whatever stream a letter names: nothing but the intake is ever written."""
    redis_client.xadd(bus.DEAD_LETTER, {"content_id": "dead", "stream": "moderation:verdicts"})
    (letter,) = deadletter.letters(redis_client)
    deadletter.replay(redis_client, letter.id)
    assert waiting(redis_client, bus.UPLOADS) == [{b"content_id": b"dead", b"rescan": b"0"}]
    assert redis_client.exists("moderation:verdicts") == 0


@pytest.mark.parametrize("reason", ["malformed_id", "malformed_task", "malformed_correction"])
def test_what_was_refused_as_it_came_is_not_replayed(redis_client: redis.Redis, reason: str) -> None:
    """What is kept of it may look like somebody else's content ID."""
    deadletter.bury(redis_client, "innocent", reason, "", rescan=True)
    (letter,) = deadletter.letters(redis_client)
    with pytest.raises(UsageError, match="refused as it came"):
        deadletter.replay(redis_client, letter.id)
    assert list(deadletter.letters(redis_client)) == [letter] and not waiting(redis_client, bus.UPLOADS)


def test_a_letter_is_replayed_or_dropped_once(redis_client: redis.Redis) -> None:
    """The second time there is none: UsageError, and nothing is enqueued."""
    deadletter.bury(redis_client, "one", "killed_its_worker", "", rescan=False)
    deadletter.bury(redis_client, "two", "killed_its_worker", "", rescan=False)
    first, second = deadletter.letters(redis_client)
    deadletter.replay(redis_client, first.id)
    assert deadletter.drop(redis_client, second.id) == second
    for letter in (first, second):
        with pytest.raises(UsageError, match="no dead letter"):
            deadletter.replay(redis_client, letter.id)
        with pytest.raises(UsageError, match="no dead letter"):
            deadletter.drop(redis_client, letter.id)
    assert [fields[b"content_id"] for fields in waiting(redis_client, bus.UPLOADS)] == [b"one"]


@pytest.mark.parametrize("letter_id", ["", "5", "-", "+", "*", "a-b", "²-1", "1-1-1", "$", "(1-1", "9" * 30 + "-1"])
def test_what_is_no_id_is_refused(redis_client: redis.Redis, letter_id: str) -> None:
    """One sentence that says where IDs are to be found; Redis is not bothered."""
    for action in (deadletter.replay, deadletter.drop):
        with pytest.raises(UsageError, match="dead-letter list"):
            action(redis_client, letter_id)


def test_letters_that_somebody_else_wrote_are_shown_as_they_are(redis_client: redis.Redis) -> None:
    """A letter without our fields, or with garbage in them, keeps nobody from the others."""
    redis_client.xadd(bus.DEAD_LETTER, {b"\xff": b"\xff", b"failed_ms": b"tomorrow", b"enqueued_ms": b"9" * 40})
    deadletter.bury(redis_client, "ours", "killed_its_worker", "", rescan=False)
    strange, ours = deadletter.letters(redis_client)
    assert (strange.content_id, strange.failed_ms, strange.enqueued_ms) == ("", 0, 0)
    assert ours.content_id == "ours"


def test_a_key_of_another_type_is_an_error_in_one_sentence(redis_client: redis.Redis) -> None:
    """Not a traceback."""
    redis_client.set(bus.DEAD_LETTER, "no stream")
    with pytest.raises(UnavailableError, match="Redis"):
        list(deadletter.letters(redis_client))


def test_the_command_lists_replays_and_drops(redis_client: redis.Redis, command: Command) -> None:
    """One line a letter: id, content ID, reason, when, detail; each action says what it did."""
    for name in ("one", "two", "three", "four"):
        deadletter.bury(redis_client, name, "killed_its_worker", "3 processes died", rescan=False)
    listed = command("dead-letter", "list")
    rows = [line.split("\t") for line in listed.stdout.splitlines()]
    assert [row[1:3] for row in rows] == [[name, "killed_its_worker"] for name in ("one", "two", "three", "four")]
    assert all(row[3].endswith("+00:00") and row[4] == "3 processes died" for row in rows)

    replayed = command("dead-letter", "replay", rows[0][0], rows[2][0])
    assert (replayed.returncode, replayed.stdout) == (0, "one is back in the intake\nthree is back in the intake\n")
    dropped = command("dead-letter", "drop", rows[1][0], rows[3][0])
    assert (dropped.returncode, dropped.stdout) == (0, "two is dropped\nfour is dropped\n")
    assert command("dead-letter", "list").stdout == ""
    assert [fields[b"content_id"] for fields in waiting(redis_client, bus.UPLOADS)] == [b"one", b"three"]

    again = command("dead-letter", "drop", rows[1][0])
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("error: There is no dead letter ")
    assert again.stderr.count("\n") == 1


def test_the_list_cannot_be_used_to_write_on_the_terminal(redis_client: redis.Redis, command: Command) -> None:
    """A malformed ID is whatever somebody sent: escape sequences, tabs and line ends are shown, not carried out."""
    deadletter.bury(redis_client, "\x1b[2J\x07a\tb\nc\u202e", "malformed_id", "sent\r\nby somebody", rescan=False)
    listed = command("dead-letter", "list").stdout
    assert listed.count("\n") == 1
    assert listed.count("\t") == 4
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(listed)
    assert "\\x1b[2J\\x07a\\tb\\nc\\u202e" in listed
