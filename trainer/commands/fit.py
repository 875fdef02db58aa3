"""`fit` and `check`: labelled folders in, a version or what is wrong with the folders out."""

import json
from pathlib import Path
from typing import Any

import click

from trainer.commands.options import weights_option
from trainer.commands.plan import plan_of, plan_options
from trainer.settings import load_settings, open_store


@click.command()
@click.option("--train", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Training pictures.")
@click.option("--test", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Test pictures.")
@plan_options(base="imagenet")
@weights_option
def fit(train: Path, test: Path, weights: Path | None, **how: Any) -> None:
    """Fit a new version on labelled folders and publish it; its id is the last line on stdout.

    Each DIR holds the folders approved, not_suitable and risked. The store's first version becomes champion,
    later ones become challenger.
    """
    from trainer.fit import fit as run
    from trainer.progress import Reporter

    reporter = Reporter()
    plan = plan_of(train, test, load_settings(), reporter, **how)
    click.echo(run(plan, open_store(weights), reporter).id)


@click.command()
@click.option("--train", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Training pictures.")
@click.option("--test", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Test pictures.")
def check(train: Path, test: Path) -> None:
    """Check labelled folders as `fit` does, without training; prints as JSON what would be used.

    Says on stderr what would be left out: files that are no pictures, repeated and contradictory ones, test
    pictures that are or look like training pictures.
    """
    from trainer import prepare
    from trainer.decoding import decoder_pool
    from trainer.features import only_looks
    from trainer.progress import Reporter
    from worker.model.preprocessing import Preprocessing

    reporter = Reporter()
    parts = prepare.gather(train, test, reporter)
    with decoder_pool(Preprocessing()) as decoders:
        checked = prepare.compute_all(parts, only_looks(decoders, reporter), reporter, "Decoding")
    click.echo(json.dumps(prepare.describe(checked), indent=2))
