"""What several commands are asked in the same words. Knows no command."""

from pathlib import Path

import click

from worker.errors import UsageError

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
base_option = click.option(
    "--base",
    default="imagenet",
    show_default=True,
    metavar="imagenet|FILE|random:SEED",
    help="Where the frozen network starts from; random is for trials only.",
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
