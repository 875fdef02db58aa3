"""Which pictures look the same: copies do, relatives do not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from trainer import looks
from trainer.arrays import Frames
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits, decode


def scene(seed: int, size: tuple[int, int] = (400, 320)) -> Image.Image:
    """A dozen coloured shapes on a sky that changes from left to right."""
    rng = np.random.default_rng(seed)
    across = np.linspace(rng.uniform(0, 100), rng.uniform(150, 255), size[0])
    image = Image.fromarray(np.repeat(np.tile(across, (size[1], 1))[..., None], 3, axis=2).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        (x, y), side = rng.integers(0, size), int(rng.integers(20, 120))
        draw.ellipse((int(x), int(y), int(x) + side, int(y) + side), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def look(image: Image.Image, format_: str = "PNG", **options: int) -> Frames:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return looks.look(decode(buffer.getvalue(), Preprocessing(), DecodeLimits()).frames[0])


def alike(first: Frames, second: Frames) -> bool:
    return looks.nearest_known(first[None], second[None]).tolist() == [0]


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_saved_smaller_or_worse_looks_the_same(seed: int) -> None:
    original = scene(seed)
    half = original.resize((200, 160))
    assert alike(look(original), look(original, "JPEG", quality=40))
    assert alike(look(original), look(half, "WEBP", quality=60))
    assert alike(look(original), look(original.crop((2, 2, 398, 318))))


def test_another_scene_looks_different() -> None:
    known = np.stack([look(scene(seed)) for seed in range(40)])
    unseen = np.stack([look(scene(seed)) for seed in range(100, 140)])
    assert looks.nearest_known(unseen, known).tolist() == [-1] * 40


def test_many_pictures_of_one_hash_are_told_apart_by_colour_a_few_pairs_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pictures of one colour: each pair of them passes the hash, and memory must not follow their number."""
    shades = np.stack([look(Image.new("RGB", (64, 64), (level, 0, 0))) for level in range(5, 255, 5)])
    assert len({shade[: looks.HASH_BYTES].tobytes() for shade in shades}) == 1
    monkeypatch.setattr(looks, "PAIRS_AT_ONCE", 7)
    found = looks.nearest_known(shades, shades[::5])
    assert (found >= 0).all()
    levels = np.arange(5, 255, 5)
    assert np.abs(levels - levels[::5][found]).max() <= looks.COLOUR_DISTANCE_MAX * 3**0.5
    blue = look(Image.new("RGB", (64, 64), (0, 0, 255)))[None]
    assert looks.nearest_known(blue, shades).tolist() == [-1]


def test_the_same_shapes_in_other_colours_look_different() -> None:
    """The green telephone and the red one are two signs."""
    original = scene(1)
    red, green, blue = original.split()
    assert not alike(look(original), look(Image.merge("RGB", (blue, red, green))))


def test_stripes_with_the_same_rhythm_and_other_colours_look_different() -> None:
    """A picture with hardly a shape gives the hash nothing to hold on to; its colours decide."""
    flags = []
    for colours in (("black", "red", "yellow"), ("yellow", "blue", "red"), ("white", "green", "red")):
        image = Image.new("RGB", (300, 300))
        for i, colour in enumerate(colours):
            image.paste(Image.new("RGB", (300, 100), colour), (0, 100 * i))
        flags.append(look(image))
    assert not any(alike(flags[i], flags[j]) for i in range(3) for j in range(i))


def test_each_picture_is_told_which_one_it_looks_like() -> None:
    known = np.stack([look(scene(seed)) for seed in range(4)])
    some = np.stack([look(scene(9)), look(scene(2), "JPEG", quality=60)])
    assert looks.nearest_known(some, known).tolist() == [-1, 2]
    assert looks.nearest_known(some, known[:0]).tolist() == [-1, -1]
    assert looks.nearest_known(some[:0], known).tolist() == []


def test_a_picture_is_repeated_where_one_before_it_looks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever slice either of them is compared."""
    monkeypatch.setattr(looks, "LOOKS_AT_ONCE", 2)
    one, two, again = look(scene(1)), look(scene(2)), look(scene(1), "JPEG", quality=60)
    assert looks.repeated(np.stack([one, again, two, one, two])).tolist() == [False, True, False, True, True]
    assert looks.repeated(np.stack([one])[:0]).tolist() == []


def test_on_the_stand_in_pictures_hardly_a_pair_is_a_mistake(shared_data: Path) -> None:
    """Looked at by eye, 47 of the 49 near pairs among its 780 pictures are copies or all but copies."""
    files = sorted(path for path in (shared_data / "standin").rglob("*") if path.is_file())
    frames = [decode(path.read_bytes(), Preprocessing(), DecodeLimits()).frames for path in files]
    seen = np.stack([looks.look(of[(len(of) - 1) // 2]) for of in frames])
    assert 20 <= int(looks.repeated(seen).sum()) <= 49
