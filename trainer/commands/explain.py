"""`explain`: pictures and a stored version in, a PNG of Shapley maps out. Changes nothing in the store."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainer.commands.options import check_folder_of, weights_option
from trainer.errors import DataError
from trainer.settings import load_settings, open_content, open_store
from worker.errors import ContentError, UsageError

if TYPE_CHECKING:
    from trainer.explain import Shown
    from worker.decode import DecoderPool


@click.command()
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    metavar="FILE",
    help="A picture; may be repeated.",
)
@click.option(
    "--content-id",
    "content_ids",
    multiple=True,
    metavar="ID",
    help="A picture that MODERATION_CONTENT_URL has; may be repeated.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="PNG", help="To write.")
@click.option("--version", metavar="ID", help="The version that explains [default: the champion].")
@click.option(
    "--before", metavar="ID", help="Another version of the same base to compare [default: an untrained last layer]."
)
@click.option("--layer", metavar="NAME", help="The layer whose input is explained [default: features.15 of VGG-11].")
@click.option(
    "--background",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Pictures to hold it against, such as training pictures [default: a plain one of the mean colour].",
)
@click.option(
    "--samples",
    type=click.IntRange(2, 10_000),
    default=50,
    show_default=True,
    metavar="N",
    help="Samples a map: more are smoother and slower.",
)
@weights_option
def explain(
    images: Sequence[Path],
    content_ids: Sequence[str],
    out: Path,
    version: str | None,
    before: str | None,
    layer: str | None,
    background: Path | None,
    samples: int,
    weights: Path | None,
) -> None:
    """Draw what speaks for and against a picture's two likeliest labels, before and after fine-tuning.

    Red speaks for a label, blue against it: Shapley maps by shap's GradientExplainer.
    """
    from trainer import explain as explaining
    from trainer import maps, release
    from trainer.decoding import decoder_pool
    from trainer.shapley import Cut
    from worker.model import devices, files
    from worker.model import network as networks
    from worker.model.preprocessing import Preprocessing

    if not images and not content_ids:
        raise UsageError("There is nothing to explain: name pictures with --image FILE or --content-id ID.")
    check_folder_of(out, "--out")
    store = open_store(weights)
    named = version or store.champion()
    if named is None:
        raise UsageError("The weights store has no champion: name a version with --version ID.")
    manifest = release.known(store, named)
    heads = explaining.heads_of(store, manifest, None if before is None else release.known(store, before))
    preprocessing = Preprocessing.from_json(manifest.preprocessing)
    pictures = [(path.name, _read(path)) for path in images] + _fetched(content_ids)
    with decoder_pool(preprocessing) as decoders:
        shown = [_decoded(name, data, decoders) for name, data in pictures]
        against = (
            explaining.neutral(preprocessing) if background is None else explaining.background_of(background, decoders)
        )
    base = store.read_base(manifest.base.sha256, manifest.base.bytes)
    cut = Cut(networks.get(manifest.network), base, preprocessing, devices.choose(load_settings().device), layer)
    made = explaining.explain(cut, heads, shown, against, samples)
    note = (
        "Red speaks for the label above it, blue against it.\n"
        f"Input of {cut.layer}, {samples} samples, held against {against.said}."
    )
    files.replace(out, maps.sheet(made, note))


def _read(path: Path) -> bytes:
    from trainer.decoding import read_bounded

    try:
        return read_bounded(path)
    except ContentError as error:
        raise _unusable(path.name, error) from error


def _fetched(content_ids: Sequence[str]) -> list[tuple[str, bytes]]:
    if not content_ids:
        return []
    from worker.verdict import check_content_id

    content = open_content()
    fetched = []
    for content_id in map(check_content_id, content_ids):
        try:
            fetched.append((content_id, content.fetch(content_id)))
        except ContentError as error:
            raise _unusable(content_id, error) from error
    return fetched


def _decoded(name: str, data: bytes, decoders: "DecoderPool") -> "Shown":
    from trainer.decoding import decoded
    from trainer.explain import Shown

    try:
        return Shown(name, decoded(decoders.submit(data), decoders).frames)
    except ContentError as error:
        raise _unusable(name, error) from error


def _unusable(name: str, error: ContentError) -> DataError:
    return DataError(f"{name!r} cannot be explained, {error.reason}: {error.detail.rstrip('.')}.")
