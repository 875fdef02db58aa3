"""What the trainer reads from `MODERATION_*` variables and a `.env` file, and the folders that follow from it.

Read once, by `cli`. Knows no torch: asking for help or a wrong setting takes no seconds.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from worker.errors import UsageError

if TYPE_CHECKING:
    from worker.content import ContentStore
    from worker.model.weights import WeightsStore


class Settings(BaseSettings):
    """The `MODERATION_*` variables, also from a `.env` file, that the trainer reads."""

    model_config = SettingsConfigDict(env_prefix="MODERATION_", env_file=".env", extra="ignore", frozen=True)

    weights_dir: Path = Field(default=Path("weights"), description="the weights store")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="`auto`: CUDA where there is a device")
    cache_dir: Path | None = Field(default=None, description="the trainer's feature cache")
    cache_max_mb: int = Field(default=10_240, ge=0, description="what the feature cache may take between runs")
    # As the worker reads them: where `retrain` finds the pictures that people decided on.
    content_url: str = Field(
        default="file:///var/lib/moderation/content/{content_id}", description="where an ID's bytes live"
    )
    content_options: dict[str, Any] = Field(default_factory=dict, description="JSON: fsspec storage options")
    content_max_bytes: int = Field(default=20 * 2**20, ge=1, le=2**30, description="a larger picture is left out")
    fetch_timeout_s: float = Field(default=10.0, gt=0.0, description="one attempt to fetch a picture over a network")
    fetch_threads: int = Field(default=16, ge=1, le=1024, description="pictures fetched at the same time")

    @field_validator("content_url")
    @classmethod
    def _has_place_for_the_id(cls, url: str) -> str:
        if url.count("{content_id}") != 1 or "://" not in url:
            raise ValueError("must be a URL with {content_id} in it once, such as file:///srv/content/{content_id}")
        return url


def load_settings() -> Settings:
    """Read the settings; raises UsageError with one sentence that names the variable at fault."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        said = str(first["msg"]).removeprefix("Value error, ")
        raise UsageError(f"MODERATION_{str(first['loc'][0]).upper()}: {said}.") from None
    except SettingsError:  # its message quotes nothing, its cause may quote a key
        raise UsageError('MODERATION_CONTENT_OPTIONS must be JSON, such as {"key": "value"}.') from None
    except RecursionError:
        raise UsageError("MODERATION_CONTENT_OPTIONS is nested too deeply: write a plain JSON object.") from None
    except (ValueError, OSError) as error:  # a .env that is no text, or must not be read
        raise UsageError(f"The file .env cannot be read: {error}.") from None


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
