"""Draws the demo's stand-in pictures: harmless, abstract, in label folders, in the formats of real uploads.

Flows through: a seed in, picture files out. Knows nothing of networks or Redis, nor what a label looks like;
that is `scenes`. What it sees to is that nothing but structure tells the label: formats, sizes, grain, turns
and the share of unclear pictures are the same for all three, and each picture is bent to a mean colour drawn
without regard to its label. `python -m deploy.demo.draw FOLDER` from the repository's root draws a set.
"""

import argparse
import io
import string
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageOps

from deploy.demo.scenes import paint
from worker.errors import UsageError
from worker.model.labels import LABELS

SPLITS: Final = ("train", "test")
DECK: Final = [
    *("jpg", "jpg-grey", "jpg", "png", "webp", "jpg-turned", "jpg", "png-alpha", "jpg", "gif"),
    *("jpg", "png-palette", "jpg-turned", "webp", "jpg"),
    *("jpg-grey", "png-alpha", "jpg", "webp-animated", "jpg"),
]
"""Kinds of files, extension first, dealt to each label in this order again and again."""

TURNS: Final = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation, and how a picture is turned before it is stored with that tag, to be shown upright."""

BLEND_SHARE: Final = 0.05
"""Share of pictures that another label's picture shines through: real uploads are not all clear."""

_ORIENTATION: Final = 0x0112
_ID_LETTERS: Final = string.ascii_letters + string.digits


class _Plan(NamedTuple):
    label: int
    kind: str
    rng: np.random.Generator


def draw_set(root: Path, train_per_label: int, test_per_label: int, seed: int = 0) -> None:
    """Writes root/{train,test}/interim/<label>/<content_id>.<ext>, about 50 pictures a second.

    The same seed gives the same bytes (with the same Pillow and NumPy), and a larger set holds the pictures
    of a smaller one. Raises UsageError for negative numbers, for a folder that cannot be written, and for one
    that holds other files: nothing is deleted, and sets are not mixed.
    """
    if min(train_per_label, test_per_label, seed) < 0:
        raise UsageError("the pictures a label and the seed cannot be negative: give 0 or more")
    plan = _plan(root, (train_per_label, test_per_label), seed)
    folders = [root / split / "interim" / label for split in SPLITS for label in LABELS]
    try:
        for folder in folders:
            # Dot files are the file manager's, not ours.
            present = [path for path in folder.glob("*") if not path.name.startswith(".")]
            if strays := sorted(set(present) - plan.keys()):
                raise UsageError(f"{strays[0]} is not of the set to be drawn: give a new or empty folder")
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for path, picture in plan.items():
            path.write_bytes(_picture(*picture))
    except OSError as error:
        raise UsageError(f"pictures cannot be written to {root} ({error}): give another folder") from error


def _plan(root: Path, counts: tuple[int, int], seed: int) -> dict[Path, _Plan]:
    plan: dict[Path, _Plan] = {}
    taken: set[str] = set()
    for split, count in enumerate(counts):
        for index in range(count):
            for label, name in enumerate(LABELS):
                rng = np.random.default_rng([seed, split, label, index])
                kind = DECK[index % len(DECK)]
                file = f"{_content_id(rng, taken)}.{kind.partition('-')[0]}"
                plan[root / SPLITS[split] / "interim" / name / file] = _Plan(label, kind, rng)
    return plan


def _content_id(rng: np.random.Generator, taken: set[str]) -> str:
    while True:
        content_id = "".join(_ID_LETTERS[i] for i in rng.integers(0, len(_ID_LETTERS), 9))
        if content_id.lower() not in taken:  # some file systems do not tell upper from lower case
            taken.add(content_id.lower())
            return content_id


def _picture(label: int, kind: str, rng: np.random.Generator) -> bytes:
    animated = kind in ("gif", "webp-animated")
    short = 300 * (1.1 if animated else 2.0) ** rng.random() ** 1.5
    sides = (int(short), int(short * rng.uniform(1, 1.3 if animated else 1.65)))
    width, height = sides if rng.random() < 0.5 else sides[::-1]
    image = paint(label, width, height, rng)
    if rng.random() < BLEND_SHARE:
        other = (label + int(rng.integers(1, 3))) % len(LABELS)
        # Warning signs shine through weakly: with few pictures held out, one that is loud in a harmless one
        # leaves no threshold at which bans are right often enough.
        weakest, strongest = (0.1, 0.22) if LABELS[other] == "risked" else (0.25, 0.4)
        image = Image.blend(image, paint(other, width, height, rng), rng.uniform(weakest, strongest))
    image = _with_mean_colour(_grain(image, rng), rng)
    return _animation(image, kind, rng) if animated else _still(image, kind, rng)


def _grain(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    noise = rng.normal(128, rng.uniform(0, 5), (128, 128)).clip(0, 255).astype(np.uint8)
    across, down = -(-image.width // 128), -(-image.height // 128)
    tile = Image.fromarray(np.tile(noise, (down, across))).crop((0, 0, image.width, image.height))
    return ImageChops.add(image, Image.merge("RGB", (tile, tile, tile)), 1, -128)


def _with_mean_colour(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Bends each channel's tone curve until the mean is one that was drawn without regard to the label.

    The mean is that of the middle, where the network looks. The curve shifts logits, which clips nothing.
    """
    target = (rng.uniform(0.4, 0.6) + rng.uniform(-0.1, 0.1, 3)).clip(0.3, 0.7)
    middle = ImageOps.fit(image, (64, 64), Image.Resampling.BOX, 0.06)
    seen = np.stack([np.bincount(channel, minlength=256) for channel in np.asarray(middle).reshape(-1, 3).T])
    level = np.linspace(0.04, 0.96, 256)
    logit = np.log(level / (1 - level))
    table: list[int] = []
    for share, wanted in zip(seen / (64 * 64), target, strict=True):
        low, high = -8.0, 8.0
        for _ in range(24):
            shift = (low + high) / 2
            mean = float(share @ (1 / (1 + np.exp(-logit - shift))))
            low, high = (shift, high) if mean < wanted else (low, shift)
        table += [round(255 * float(x)) for x in 1 / (1 + np.exp(-logit - (low + high) / 2))]
    return image.point(table)


def _animation(image: Image.Image, kind: str, rng: np.random.Generator) -> bytes:
    """Two or three frames that move into the picture: few, because each is one more forward pass."""
    frames = [_zoomed(image, 1 - 0.03 * step) for step in range(int(rng.integers(2, 4)))]
    out = io.BytesIO()
    if kind == "gif":
        first, *rest = [frame.quantize(64, Image.Quantize.FASTOCTREE) for frame in frames]
        first.save(out, "GIF", save_all=True, append_images=rest, duration=120, loop=0)
    else:
        first, *rest = frames
        first.save(out, "WEBP", save_all=True, append_images=rest, duration=120, loop=0, quality=75, method=0)
    return out.getvalue()


def _still(image: Image.Image, kind: str, rng: np.random.Generator) -> bytes:
    out = io.BytesIO()
    if kind == "webp":
        image.save(out, "WEBP", quality=int(rng.integers(60, 90)), method=0)
    elif kind.startswith("jpg"):
        exif = Image.Exif()
        if kind == "jpg-grey":
            image = image.convert("L")
        elif kind == "jpg-turned":
            exif[_ORIENTATION] = turn = int(rng.choice(list(TURNS)))
            image = image.transpose(TURNS[turn])
        image.save(out, "JPEG", quality=int(rng.integers(70, 95)), exif=exif)
    else:
        if kind == "png-palette":
            image = image.quantize(96, Image.Quantize.FASTOCTREE)
        elif kind == "png-alpha":
            image.putalpha(_rounded(image.size, min(image.size) * rng.uniform(0.1, 0.3)))
        image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _rounded(size: tuple[int, int], radius: float) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius, fill=255)
    return mask


def _zoomed(image: Image.Image, share: float) -> Image.Image:
    dx, dy = image.width * (1 - share) / 2, image.height * (1 - share) / 2
    return image.resize(image.size, Image.Resampling.BILINEAR, (dx, dy, image.width - dx, image.height - dy))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the demo's stand-in picture set.")
    parser.add_argument("root", type=Path, help="a new or empty folder")
    parser.add_argument("--train-per-label", type=int, default=90)
    parser.add_argument("--test-per-label", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        draw_set(args.root, args.train_per_label, args.test_per_label, args.seed)
    except UsageError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
