"""`cluster`: pictures that nobody has labelled in, labelled folders out, a person in between."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from trainer.commands.options import base_option, cache_option
from trainer.settings import cache_folder, load_settings
from worker.errors import UsageError

if TYPE_CHECKING:
    from trainer.first_labels import Plan
    from trainer.progress import Reporter


@click.command("cluster")
@click.option("--pictures", type=click.Path(path_type=Path), metavar="DIR", help="Pictures to cluster, at any depth.")
@click.option(
    "--apply",
    "names",
    type=click.Path(path_type=Path),
    metavar="NAMES.toml",
    help="Write the labelled folders by a names file that a person filled in.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to write; must be new."
)
@base_option("imagenet", champion=False)
@click.option(
    "--method", type=click.Choice(["kmeans", "hdbscan"]), default="kmeans", show_default=True, help="How to cluster."
)
@click.option(
    "--clusters",
    type=click.IntRange(2, 1000),
    metavar="K",
    help="Clusters of k-means [default: the square root of the number of pictures, at most 100].",
)
@click.option(
    "--smallest",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    metavar="N",
    help="Pictures in a cluster of HDBSCAN at least.",
)
@click.option(
    "--doubt",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    metavar="X",
    help="Check by hand what has more: for k-means the distance to the own centre over that to the next.",
)
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    metavar="N",
    help="Pictures drawn at random to measure purity on.",
)
@cache_option
def cluster_pictures(
    pictures: Path | None,
    names: Path | None,
    out: Path,
    base: str,
    method: Literal["kmeans", "hdbscan"],
    clusters: int | None,
    smallest: int,
    doubt: float,
    sample: int,
    cache: Path | None,
) -> None:
    """Group pictures that look alike, so that a person names groups and not pictures; prints JSON.

    --pictures DIR writes clusters.html to look at, names.toml and sample.csv to fill in. --apply NAMES.toml then
    writes <label>/<content_id>.<ext>, lists what must be checked by hand in check.csv beside the names, and reports
    purity on the random sample. Labels filled in in check.csv count the next time.
    """
    from trainer.first_labels import Plan, apply
    from trainer.progress import Reporter

    if (pictures is None) == (names is None):
        raise UsageError("Give either --pictures DIR to cluster, or --apply NAMES.toml to write the labelled folders.")
    reporter = Reporter()
    if names is not None:
        told = apply(names, out, reporter)
    else:
        assert pictures is not None
        plan = Plan(pictures, out, method, clusters, smallest, doubt, sample)
        told = _gather(plan, base, cache, reporter)
    click.echo(json.dumps(told, indent=2))


def _gather(plan: "Plan", base_name: str, cache: Path | None, reporter: "Reporter") -> dict[str, object]:
    from trainer.bases import load_base
    from trainer.features import computing
    from trainer.first_labels import check_plan, gather
    from trainer.frozen import FrozenPart
    from trainer.tables import Tables
    from worker.model import devices
    from worker.model import network as networks
    from worker.model.preprocessing import Preprocessing

    check_plan(plan)
    settings, folder, network = load_settings(), cache_folder(cache), networks.get("vgg11")
    base, source = load_base(base_name, network, reporter)
    part = FrozenPart(network, base, Preprocessing(), devices.choose(settings.device), Tables(folder))
    with computing(part, reporter, folder, settings.cache_max_mb * 2**20) as (compute, decoders):
        return gather(plan, compute, decoders, {"method": plan.method, "base": source}, reporter)
