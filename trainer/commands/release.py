"""`list`, `show`, `promote`, `rollback`: which versions there are, and which one serves."""

import sys
from pathlib import Path

import click

from trainer.commands.options import by_option, margin_option, weights_option
from trainer.settings import open_store
from worker.errors import UsageError


@click.command("list")
@weights_option
def list_versions(weights: Path | None) -> None:
    """List the versions: a table on a terminal, tab-separated lines elsewhere."""
    from rich.console import Console

    from trainer import release
    from trainer.progress import Reporter

    release.show_versions(open_store(weights), Console(file=sys.stdout, highlight=False), Reporter().say)


@click.command()
@click.argument("version", metavar="ID")
@weights_option
def show(version: str, weights: Path | None) -> None:
    """Print the manifest of a version as JSON."""
    from trainer import release

    click.echo(release.known(open_store(weights), version).to_json().decode(), nl=False)


@click.command()
@click.argument("version", metavar="ID")
@click.option("--why", metavar="TEXT", help="The reason on record [default: promoted by hand].")
@margin_option
@click.option("--force", is_flag=True, help="Promote against the gate; needs --why, and is put on record.")
@click.option("--dry-run", is_flag=True, help="Print what the gate says today, and change nothing.")
@weights_option
@by_option
def promote(
    version: str, why: str | None, margin: float, force: bool, dry_run: bool, weights: Path | None, by: str | None
) -> None:
    """Put a version into service, once it is shown not to be worse than the champion and its files are verified.

    Both are compared on the test pictures that both judged. The store's first version needs no comparison. With
    --dry-run the figures and the answer go to stdout, and where that is no the exit code is 3.
    """
    from trainer import release
    from trainer.progress import Reporter

    if dry_run and force:
        raise UsageError("--dry-run asks the gate, which --force goes against: leave one of them out.")
    if force and not (why or "").strip():
        raise UsageError("--force needs a reason for the record: add --why TEXT.")
    store, who = open_store(weights), by or release.whoami()
    if dry_run:
        release.preview(store, version, margin=margin, say=click.echo)
        return
    release.known(store, version)  # before the lock, which would make a folder of a mistaken name
    with release.one_run(store):
        say = Reporter().say
        release.promote(store, version, by=who, why=why or "promoted by hand", margin=margin, force=force, say=say)
    click.echo(version)


@click.command()
@click.option("--why", default="rolled back by hand", show_default=True, metavar="TEXT", help="The reason on record.")
@weights_option
@by_option
def rollback(why: str, weights: Path | None, by: str | None) -> None:
    """Put the champion before this one back into service; works while a training run is under way."""
    from trainer import release
    from trainer.progress import Reporter

    store, say = open_store(weights), Reporter().say
    back = release.rollback(store, by=by or release.whoami(), why=why, say=say)
    say(f"In service in the store {store.root.absolute()}:")
    click.echo(back)
