"""What the table says of parts that do not belong together, and what is kept beside them."""

from typing import Any

from tests.chaos import table
from tests.chaos.resumption import Resumption

COUNTS = (
    "seconds", "verdicts", "bans", "again", "rescans", "late", "corrections", "known_copies", "copies_judged_before",
    "rewritten", "swaps", "orphaned", "into_the_void", "lost", "twice", "banned_twice", "other", "messages",
    "sent_by_name", "lost_by_name",
)  # fmt: skip


def part(commit: str, **more: Any) -> dict[str, Any]:
    """A part's figures, all of them 1."""
    said = {"date": "2026-11-24", "seed": 1, "appendfsync": "everysec", "attacks": {"SIGKILL of a worker": 2}}
    return dict.fromkeys(COUNTS, 1) | said | {"commit": commit, "resumed": []} | more


def test_parts_of_one_commit_are_summed_without_a_word() -> None:
    """Each has its own in its row."""
    said = table.markdown({"processes": part("abc1234"), "server": part("abc1234")}, {})
    assert "| processes | 2026-11-24 | 1 | abc1234 | everysec |" in said
    assert "different commits" not in said and "+changes" not in said


def test_parts_of_different_commits_are_said_to_be_so() -> None:
    """And that there was more in the working tree than the commit."""
    said = table.markdown({"processes": part("abc1234"), "server": part("abc1234+changes")}, {})
    assert "**The parts ran at 2 different commits**" in said and "**+changes**" in said


def test_the_control_says_what_was_lost_and_where_it_lay() -> None:
    """Apart from the sums."""
    said = table.markdown({"server": part("a"), "control": part("a", control=3, stranded=5, lost=0)}, {})
    assert "**3** IDs had no verdict" in said and "(5 entries;" in said
    assert "| **SIGKILLs of workers** |  | **2** |" in said


def test_work_and_messages_by_name_have_limits_of_their_own() -> None:
    """Both are in the table, and either may be late."""
    assert not Resumption("server killed", 20.0, 1.0, 10.0, 45.0).late
    assert Resumption("server killed", 20.0, 1.0, 10.1, 1.0).late
    assert Resumption("server killed", 20.0, 1.0, 1.0, 45.1).late
    assert not Resumption("server killed", 30.0, 1.0, 35.0, 1.0).late


def test_what_is_kept_beside_the_runs_has_its_command() -> None:
    """With seed and commit."""
    kept = {"what": "pictures", "command": "pytest x", "seed": None, "date": "d", "commit": "c", "result": "well"}
    assert "| pictures | `pytest x` | – | d | c | well |" in table.markdown({}, {"soak": kept})
