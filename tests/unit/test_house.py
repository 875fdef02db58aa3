"""README's map of the house against the house."""

import re
from pathlib import Path

import pytest

from tests.support.worker import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MAP = README.partition("## The house")[2].partition("\n## ")[0]
FOLDERS = {
    "worker": "worker/      ",
    "worker/model": "  model/     ",
    "trainer": "trainer/     ",
    "deploy": "deploy/      ",
}


def part(folder: str) -> str:
    """What the map says of one folder."""
    after = MAP.partition(f"\n{FOLDERS[folder]}")[2]
    ends = [after.find(f"\n{start}") for name, start in FOLDERS.items() if name != folder]
    return after[: min((end for end in ends if end >= 0), default=len(after))]


def modules(folder: str) -> list[str]:
    """Its modules' names."""
    return sorted(path.stem for path in Path(REPOSITORY / folder).glob("*.py") if not path.stem.startswith("__"))


@pytest.mark.parametrize("folder", ["worker", "worker/model", "trainer"])
def test_every_module_has_its_place(folder: str) -> None:
    """Whoever adds one says where it belongs."""
    said = set(re.findall(r"[a-z0-9_]+", part(folder)))
    assert not [name for name in modules(folder) if name not in said]


@pytest.mark.parametrize("folder", ["worker", "worker/model", "trainer"])
def test_what_is_in_brackets_is_there(folder: str) -> None:
    """A module that was renamed or removed does not stay on the map."""
    inside = re.findall(r"\(([a-z0-9_, ]+)\)", part(folder))
    named = {name for words in inside for name in re.split(r"[, ]+", words) if name not in ("outside", "inside")}
    assert named <= set(modules(folder)), named - set(modules(folder))
