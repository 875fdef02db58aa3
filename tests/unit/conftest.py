"""Drawn pictures that several tests of fitting share; a file may have others of its own by the same name."""

from pathlib import Path

import pytest

from tests.support.fitting import draw_both


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 60 and test/ with 15 easy pictures a label."""
    return draw_both(tmp_path_factory.mktemp("pictures"), 60, 15, 1)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """train/ with 8 and test/ with 3 pictures a label, for tests that change them."""
    return draw_both(tmp_path / "few", 8, 3, 3)
