"""The table of a long run is shown at its end."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import results


@pytest.fixture(scope="session")
def _table(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if results.PARTIAL.exists():
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n\n{results.PARTIAL.read_text()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte, which only root can make; elsewhere a skip, and in CI a failure."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"CI cannot mount a small file system: {made.stderr}")
        pytest.skip("a full disk needs the right to mount a small file system, as root has it")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
