"""`make demo`, as far as it is not the set-up: the drawn set through the real network, and what it says."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.worker import REPOSITORY

# 360 pictures through the real VGG-11, and 90 more: two minutes of two cores, twice that of one, as when another test
# computes beside it, and no end to it where a third thing does.
PATIENCE_S = 540.0


def demo(*words: str) -> "subprocess.CompletedProcess[str]":
    """One run of the demo. Where it lasts too long, its trainer and its worker end with it."""
    command = [sys.executable, "-m", "deploy.demo", *words]
    environment = os.environ | {"COLUMNS": "120"}
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, complained = process.communicate(timeout=PATIENCE_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, said, complained)


@pytest.mark.timeout(PATIENCE_S + 60)
def test_the_drawn_set_is_judged_as_promised(tmp_path: Path) -> None:
    """At least 0.9 are right, some are banned, every ID has one entry, and three verdicts are shown."""
    done = demo("--folder", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stdout + done.stderr
    right, banned = re.search(r"([0-9.]+) right, ([0-9]+) banned", done.stdout).groups()
    assert float(right) >= 0.9
    assert int(banned) > 0
    assert "90 submitted, 90 entries in moderation:verdicts, 90 different IDs" in done.stdout
    assert done.stdout.count('"status": "decided"') == 3
    assert "/metrics" in done.stdout and "FOR TRIALS ONLY" in done.stderr


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    """One sentence that says how the folder must look, and exit 2."""
    done = demo("--folder", str(tmp_path / "demo"), "--data", str(tmp_path))
    assert done.returncode == 2
    assert "train/interim/<label>" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_of_somebody_elses_is_not_emptied(tmp_path: Path) -> None:
    """The demo empties its own folder only."""
    (tmp_path / "mine").write_text("keep me")
    done = demo("--folder", str(tmp_path))
    assert done.returncode == 2
    assert (tmp_path / "mine").read_text() == "keep me" and "Traceback" not in done.stderr
