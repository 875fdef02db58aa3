"""The trainer reads its own few variables; what it shares with the worker means the same on both sides."""

import pytest

from trainer import settings as trainers
from worker import settings as workers
from worker.errors import UsageError

SHARED = sorted(set(trainers.Settings.model_fields) & set(workers.Settings.model_fields))


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_variable_has_one_default(name: str) -> None:
    ours, theirs = trainers.load_settings(), workers.load()
    assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONTENT_URL", "file:///srv/pictures"),
        ("CONTENT_URL", "/srv/{content_id}"),
        ("CONTENT_OPTIONS", "{'secret': 'geheim'}"),
        ("CONTENT_MAX_BYTES", "0"),
        ("FETCH_TIMEOUT_S", "0"),
        ("FETCH_THREADS", "0"),
        ("DEVICE", "abacus"),
        ("WEIGHTS_DIR", ""),
    ],
)
def test_what_one_side_refuses_so_does_the_other(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, which names the variable and repeats no secret."""
    monkeypatch.setenv(f"MODERATION_{name}", value)
    for load in (trainers.load_settings, workers.load):
        with pytest.raises(UsageError, match=f"^MODERATION_{name}") as raised:
            load()
        assert "geheim" not in str(raised.value)


def test_an_empty_cache_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the working folder: compose files pass on what is not set as an empty text."""
    monkeypatch.setenv("MODERATION_CACHE_DIR", "")
    assert trainers.load_settings().cache_dir is None
    assert trainers.cache_folder(None).name == "moderation-trainer"
