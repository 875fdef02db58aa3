"""Variables that look like settings and are none."""

from pathlib import Path

import pytest

from trainer.settings import Settings as TrainerSettings
from worker import misspelt
from worker.settings import Settings


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """In a folder of its own, with no variable of ours set."""
    monkeypatch.chdir(tmp_path)
    for name in misspelt.os.environ:
        if name.startswith(misspelt.PREFIX):
            monkeypatch.delenv(name)
    return tmp_path


def test_both_sides_settings_are_known() -> None:
    """They may stand in one file."""
    assert set(misspelt.TRAINERS) == {
        name.upper() for name in TrainerSettings.model_fields if name not in Settings.model_fields
    }


def test_names_in_the_environment_and_in_the_file_are_looked_at(monkeypatch: pytest.MonkeyPatch, alone: Path) -> None:
    """In any case, as pydantic-settings reads them; a value is never quoted."""
    monkeypatch.setenv("moderation_redis_url", "redis://:secret@127.0.0.1")
    monkeypatch.setenv("MODERATION_REDIS_ULR", "redis://:secret@127.0.0.1")
    (alone / ".env").write_text("MODERATION_AUDIT_SHRE=0.5\nMODERATION_AUDIT_SHARE=0.5\nPOSTGRES_PASSWORD=x\n")
    assert misspelt.sentences() == [
        "MODERATION_AUDIT_SHRE is no setting and has no effect: MODERATION_AUDIT_SHARE is one.",
        "MODERATION_REDIS_ULR is no setting and has no effect: MODERATION_REDIS_URL is one.",
    ]


def test_a_file_that_is_no_text_is_left_to_who_reads_the_settings(alone: Path) -> None:
    (alone / ".env").write_bytes(b"MODERATION_MAX_BATCH=\xff\xfe")
    assert misspelt.sentences() == []
