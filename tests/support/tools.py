"""Programs of the machine that tests need: a missing one skips at home, with its reason, and fails in CI."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str, how: str) -> str:
    """The path of a program on PATH or beside this Python; `how` says how to get it."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        missing(f"there is no {name} on PATH: {how}")
    return str(found)


def missing(sentence: str) -> None:
    """Ends the test: something that it needs is not on this machine."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{sentence} (CI must not skip it)")
    pytest.skip(sentence)
