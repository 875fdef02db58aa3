"""The files `champion` and `challenger`: each names a version, on its one line.

A file goes in, a version id comes out. Knows no torch, so that a command that only looks starts at once.
"""

import os
from pathlib import Path

from worker.errors import WeightsError
from worker.model import files
from worker.model.manifest import VERSION_ID


def read(root: Path, name: str) -> str | None:
    """The version id in the store's file `name`, None where there is no such file. WeightsError where it holds none."""
    try:
        with files.open_inside(root, name, limit=200) as file:
            version_id = file.read().decode("ascii", errors="replace").removesuffix("\n")
    except files.AbsentError:
        if os.path.lexists(root / name):
            raise
        return None
    if not VERSION_ID.fullmatch(version_id):
        raise WeightsError(f"the file {name} in {root} holds no version id: write one there")
    return version_id
