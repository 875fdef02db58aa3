"""What several commands are asked in the same words. Knows no command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from worker.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])

weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The weights store [default: MODERATION_WEIGHTS_DIR, else ./weights].",
)
cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The feature cache [default: MODERATION_CACHE_DIR, else ~/.cache/moderation-trainer].",
)
by_option = click.option("--by", metavar="NAME", help="Who is on record for it [default: this user].")


def base_option(default: str, *, champion: bool = True) -> Callable[[Command], Command]:
    """`--base`, with another default for what goes on from the champion; without it where there need be no store."""
    of_champion = "champion is what the champion stands on, imagenet where there is none; " if champion else ""
    return click.option(
        "--base",
        default=default,
        show_default=True,
        metavar=f"imagenet|{'champion|' if champion else ''}FILE|random:SEED",
        help=f"Where the frozen network starts from; {of_champion}random is for trials only.",
    )


margin_option = click.option(
    "--margin",
    type=float,
    default=0.02,
    show_default=True,
    help="How much worse than the champion it may be, in accuracy and recall of risked.",
)


def check_folder_of(file: Path | None, option: str) -> None:
    """Found out before the work, not after it. Raises UsageError where there is no folder to write `file` into."""
    if file is not None and not file.parent.is_dir():
        raise UsageError(f"There is no folder {str(file.parent)!r} for {option}: create it, or name another file.")
