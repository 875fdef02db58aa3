"""All settings of the serving side, and those that the trainer shares, from `MODERATION_*` variables and a `.env` file.

Names and defaults that others rely on are CONTRACT; the rest are knobs. Units are in the names. Read once, in `app` and
`cli`; everything else is handed what it needs. Knows no torch, Celery or Redis.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from worker import cores
from worker.errors import UsageError


def _refuse_empty(value: Any) -> Any:
    # As a path it would be the working folder, and as a host every address of the machine.
    if value == "":
        raise ValueError("must not be empty")
    return value


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value  # compose files pass on what is not set as an empty text


Text = Annotated[str, BeforeValidator(_refuse_empty)]
MaybeText = Annotated[str | None, BeforeValidator(_empty_is_none)]
Folder = Annotated[Path, BeforeValidator(_refuse_empty)]
MaybeFolder = Annotated[Path | None, BeforeValidator(_empty_is_none)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Bounds keep sums and products of settings within what Redis, sockets and clocks take.
Seconds = Annotated[float, Field(ge=0.0, le=31_536_000.0)]
PositiveSeconds = Annotated[float, Field(gt=0.0, le=31_536_000.0)]
VERDICT_TTL_MAX_S = 315_360_000
INTAKE_MAX = 1_000_000
TASK_IDS_MAX = 256
GIB = 2**30
# What a worker needs itself, reading and compiling weights while it holds some.
ITSELF_BYTES, ITSELF_ON_GPU_BYTES = 4 * GIB, 8 * GIB
DECODE_MAX_PIXELS = 89_478_485  # as many as Pillow reads without its warning of a decompression bomb

Read = TypeVar("Read", bound=BaseSettings)


class Shared(BaseSettings):
    """What workers and the trainer read alike: where pictures and weights are, and on what to compute."""

    model_config = SettingsConfigDict(env_prefix="MODERATION_", env_file=".env", extra="ignore", frozen=True)

    content_url: str = Field(
        "file:///var/lib/moderation/content/{content_id}",
        description="where an ID's bytes live: an fsspec URL with `{content_id}` in it",
    )
    content_options: dict[str, Any] = Field(
        default_factory=dict, description="JSON: storage options for that fsspec file system (endpoint, keys, …)"
    )
    content_max_bytes: int = Field(20 * 2**20, ge=1, le=2**30, description="a larger picture is undecided, `too_large`")
    fetch_timeout_s: PositiveSeconds = Field(10.0, description="one attempt to fetch a picture over a network")
    fetch_threads: int = Field(16, ge=1, le=1024, description="pictures fetched at the same time")
    weights_dir: Folder = Field(Path("weights"), description="the weights store")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`: CUDA where there is a device")

    @field_validator("content_url")
    @classmethod
    def _has_place_for_the_id(cls, url: str) -> str:
        if url.count("{content_id}") != 1 or "://" not in url:
            raise ValueError("must be a URL with {content_id} in it once, such as file:///srv/content/{content_id}")
        return url


class Settings(Shared):
    """The serving side's."""

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis 7 or newer, or Valkey: broker, intake, verdicts. `rediss://` for TLS, with "
        "`?ssl_ca_certs=FILE` where the certificate's authority is your own. With "
        "`MODERATION_SENTINEL_MASTER` set, the host part lists the Sentinels: `redis://host1:26379,host2:26379/0`.",
    )
    sentinel_master: MaybeText = Field(None, description="name of the master that the Sentinels watch")
    not_found_retry_s: Seconds = Field(30.0, description="how long a missing picture is looked for again")
    fetch_failed_retry_s: Seconds = Field(3600.0, description="how long a broken content store is tried again")

    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="`auto` takes the fastest that was checked against fp32; `int8` is for the CPU, `bf16` for a "
        "device that multiplies it natively",
    )
    engines_dir: MaybeFolder = Field(
        None,
        description="where compiled engines are kept, for this user alone: they are programs, so not in the store; "
        "by default `moderation-worker` in `$XDG_CACHE_HOME`, else in `~/.cache`",
    )
    max_batch: int = Field(64, ge=1, le=4096, description="images in one forward pass")
    torch_threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="threads of one forward pass on the CPU; 0: one for each core that this process may use, and "
        "a single one beside a GPU",
    )

    decoders: int = Field(
        0, ge=0, le=1024,
        description="decoder processes; 0: one for every four cores where the network takes the cores, beside a GPU "
        "all cores but one, shared by the GPUs; no more than a container's memory limit has room for, half of them at "
        "their own limit (4 GiB, beside a GPU 8, are the worker's); at least two, so that a slow picture keeps no "
        "other waiting. With several containers, or workers without a GPU, on a machine, give each its part",
    )  # fmt: skip
    decode_timeout_s: PositiveSeconds = Field(8.0, description="a slower picture is undecided, `decode_timeout`")
    decode_memory_mb: int = Field(1536, ge=64, le=2**20, description="memory one decoder may use for a picture")
    decode_max_pixels: int = Field(
        64_000_000, ge=1, le=DECODE_MAX_PIXELS, description="a larger frame is undecided, `too_large`"
    )

    review_placement: Literal["held", "author_only"] = Field(
        "held", description="where a picture waits while a person is asked"
    )
    audit_share: Share = Field(0.0, description="share of decided pictures sent to a person at random")
    intake_max: int = Field(
        INTAKE_MAX, ge=0, le=10**9,
        description="content IDs that may wait in one stream before `submit` is refused; 0: no limit",
    )  # fmt: skip
    ban_quota_share: Share = Field(
        0.2, description="a greater share of bans among at least 500 decided within 600 s opens the circuit breaker"
    )
    ban_quota_count: int = Field(
        0, ge=0, le=10**9, description="so does a greater number of bans within 600 s; 0: no limit"
    )
    verdict_ttl_s: int = Field(
        604800, ge=1, le=VERDICT_TTL_MAX_S,
        description="how long a verdict can be looked up, and how far the stream of verdicts reaches back",
    )  # fmt: skip
    claim_deadline_s: PositiveSeconds = Field(120.0, description="a claim in work for longer is left to others")
    forward_timeout_s: PositiveSeconds = Field(60.0, description="a batch that takes longer ends the process")
    takeover_idle_s: PositiveSeconds = Field(15.0, description="a claim not refreshed for so long is taken over")
    drain_s: Seconds = Field(10.0, description="how long a stopping worker goes on with what it holds")

    metrics_host: Text = Field("127.0.0.1", description="where `/metrics`, `/healthz` and `/readyz` listen")
    metrics_port: int = Field(9101, ge=0, le=65535, description="their port; 0 switches them off")
    exporter_port: int = Field(9201, ge=1, le=65535, description="`/metrics` of `moderation exporter`")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="what is logged")
    log_format: Literal["text", "json"] = Field("text", description="`json`: a JSON object a line, for a log store")

    @field_validator("intake_max")
    @classmethod
    def _takes_a_whole_task(cls, most: int) -> int:
        if 0 < most < TASK_IDS_MAX:
            raise ValueError(f"must be 0, or at least {TASK_IDS_MAX}, as many as one Celery task may carry")
        return most

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis_url(cls, url: str) -> str:
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return url

    @model_validator(mode="after")
    def _claims_outlive_a_picture(self) -> "Settings":
        if self.claim_deadline_s <= self.fetch_timeout_s + 2 * self.decode_timeout_s:
            raise ValueError(
                "MODERATION_CLAIM_DEADLINE_S must be longer than MODERATION_FETCH_TIMEOUT_S and twice "
                "MODERATION_DECODE_TIMEOUT_S together, or slow pictures are judged again and again"
            )
        return self

    def engines_folder(self) -> Path:
        """Where compiled engines are kept."""
        if self.engines_dir is not None:
            return self.engines_dir
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moderation-worker"

    def decoder_count(self, *, on_gpu: bool = False) -> int:
        """Decoder processes to start: as many as were asked for, or the cores that the network leaves free, as far as
        half of them may take all of their memory at the same time: most pictures take a tenth of it."""
        workers = cores.gpus() if on_gpu else 1
        wanted = cores.usable() // workers - 1 if on_gpu else cores.usable() // 4
        free_bytes = cores.memory_bytes() / workers - (ITSELF_ON_GPU_BYTES if on_gpu else ITSELF_BYTES)
        return self.decoders or max(2, int(min(wanted, 2 * free_bytes / (self.decode_memory_mb * 2**20))))

    def torch_thread_count(self, *, on_gpu: bool = False) -> int:
        """Threads of torch's on the CPU. Beside a GPU they only copy frames, and would wait for the next ones on cores
        that decode."""
        return self.torch_threads or (1 if on_gpu else cores.usable())


def load(**overrides: Any) -> Settings:
    """Reads the serving side's settings; raises as `read`."""
    return read(Settings, **overrides)


def read(kind: type[Read], **overrides: Any) -> Read:
    """Reads settings of one side; raises UsageError with one sentence that names the variable at fault."""
    try:
        return kind(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = f"MODERATION_{str(first['loc'][0]).upper()}: " if first["loc"] else ""
        raise UsageError(f"{name}{first['msg'].removeprefix('Value error, ')}.") from None
    except SettingsError as error:  # its message names the field only; the cause may quote a key
        field = re.search(r'field "(\w+)"', str(error))
        name = f"MODERATION_{field[1].upper()}" if field else "A setting"
        raise UsageError(f'{name} must be JSON, such as {{"key": "value"}}.') from None
    except RecursionError:
        raise UsageError("MODERATION_CONTENT_OPTIONS is nested too deeply: write a plain JSON object.") from None
    except (ValueError, OSError) as error:  # a .env that is no text, or must not be read
        raise UsageError(f"The file .env cannot be read: {error}.") from None


def markdown_table() -> str:
    """The README's settings table, a row a setting."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, {}) else f"`{default}`"
        rows.append(f"| `MODERATION_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(markdown_table(), end="")
