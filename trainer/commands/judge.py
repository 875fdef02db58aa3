"""`evaluate`: a stored version and pictures in, what it makes of them out. Changes nothing in the store."""

import json
from pathlib import Path

import click

from trainer.commands.options import cache_option, check_folder_of, weights_option
from trainer.settings import cache_folder, load_settings, open_store


@click.command("evaluate")
@click.argument("version", metavar="ID")
@click.option("--test", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Labelled pictures.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write a page of them, too."
)
@weights_option
@cache_option
def evaluate_version(version: str, test: Path, report: Path | None, weights: Path | None, cache: Path | None) -> None:
    """Judge the pictures in DIR with a stored version; prints its figures as JSON and changes nothing."""
    from trainer import release
    from trainer.assess import evaluate_stored
    from trainer.features import computing
    from trainer.frozen import FrozenPart
    from trainer.progress import Reporter
    from trainer.tables import Tables
    from worker.model import devices, files
    from worker.model import network as networks
    from worker.model.preprocessing import Preprocessing

    check_folder_of(report, "--report")
    store, settings, reporter, folder = open_store(weights), load_settings(), Reporter(), cache_folder(cache)
    manifest = release.known(store, version)
    preprocessing = Preprocessing.from_json(manifest.preprocessing)
    base = store.read_base(manifest.base.sha256, manifest.base.bytes)
    device = devices.choose(settings.device)
    part = FrozenPart(networks.get(manifest.network), base, preprocessing, device, Tables(folder))
    with computing(part, reporter, folder, settings.cache_max_mb * 2**20) as (compute, decoders):
        figures, page = evaluate_stored(store, manifest, test, part, compute, decoders, reporter)
    if report is not None:
        files.replace(report, page)
    click.echo(json.dumps(figures, indent=2))
