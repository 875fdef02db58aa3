"""What the trainer reads from `MODERATION_*` variables and a `.env` file, and the folders that follow from it.

Read once, by `cli`. Knows no torch: asking for help or a wrong setting takes no seconds.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from worker.errors import UsageError
from worker.settings import MaybeFolder, Shared, read

if TYPE_CHECKING:
    from worker.content import ContentStore
    from worker.model.weights import WeightsStore


class Settings(Shared):
    """The `MODERATION_*` variables that the trainer reads; `retrain` finds the pictures that people decided on where
    workers do."""

    cache_dir: MaybeFolder = Field(default=None, description="the trainer's feature cache")
    cache_max_mb: int = Field(default=10_240, ge=0, description="what the feature cache may take between runs")


def load_settings() -> Settings:
    """Read the settings; raises UsageError with one sentence that names the variable at fault."""
    return read(Settings)


def open_store(weights: Path | None) -> "WeightsStore":
    """The store that --weights, else the settings, name."""
    from worker.model.weights import WeightsStore

    return WeightsStore(load_settings().weights_dir if weights is None else weights)


def cache_folder(cache: Path | None) -> Path:
    """The feature cache that --cache, else the settings, name; else one in the user's own cache folder."""
    if named := cache or load_settings().cache_dir:
        return named
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a container's user without a home
        raise UsageError("This user has no home for a feature cache: set MODERATION_CACHE_DIR.") from None
    return Path(home) / "moderation-trainer"


def open_content() -> "ContentStore":
    """The content store that the settings name. Raises UsageError where it cannot be used."""
    from worker.content import ContentStore

    settings = load_settings()
    return ContentStore(
        settings.content_url,
        max_bytes=settings.content_max_bytes,
        timeout_s=settings.fetch_timeout_s,
        options=settings.content_options,
    )
