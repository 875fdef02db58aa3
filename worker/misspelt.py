"""Variables that look like settings and are none: a misspelt limit would otherwise be as if it had never been set.

Names go in, sentences come out, for whoever starts a process to say. Knows no values.
"""

import difflib
import os
from typing import Final

from dotenv import dotenv_values

from worker.settings import Settings

PREFIX: Final = "MODERATION_"

TRAINERS: Final = ("CACHE_DIR", "CACHE_MAX_MB")
"""Settings of `moderation-trainer` that are not the worker's as well; both may read one file."""


def sentences() -> list[str]:
    """One for each MODERATION_* name in the environment, or in `.env`, that neither side knows."""
    known = [PREFIX + name.upper() for name in (*Settings.model_fields, *TRAINERS)]
    try:
        names = {*os.environ, *dotenv_values(".env")}
    except (OSError, ValueError):  # said by whoever reads the settings
        names = set(os.environ)
    unknown = sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known)
    return [f"{name} is no setting and has no effect{_meant(name.upper(), known)}." for name in unknown]


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f": {close[0]} is one" if close else ""
