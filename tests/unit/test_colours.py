"""A picture is judged in its plain numbers and, where its tags make another picture of them, as browsers show it."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from tests.support.profiles import grey_profile, key_profile, rgb_profile
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits, decode

PREPROCESSING = Preprocessing(resize=64, crop=64)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
HIDING = 60.0
"""A curve so steep that a whole picture fits into the lightest levels."""


def drawn(seed: int = 0) -> np.ndarray:
    """uint8 [64, 64, 3]: fields of 8 pixels, each of its own colour, what is to be hidden."""
    levels = np.random.default_rng(seed).integers(60, 230, (8, 8, 3))
    return np.kron(levels, np.ones((8, 8, 1))).astype(np.uint8)


def hidden(levels: np.ndarray, gamma: float) -> np.ndarray:
    """Numbers that look like `levels` by a profile of that gamma."""
    linear = ((levels / 255 + 0.055) / 1.055) ** 2.4
    return np.rint(255 * linear ** (1 / gamma)).astype(np.uint8)


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, image_format, **options)
    return data.getvalue()


def gamma_tag(gamma: float, *, srgb: bool = False) -> PngImagePlugin.PngInfo:
    tags = PngImagePlugin.PngInfo()
    if srgb:
        tags.add(b"sRGB", b"\0")
    tags.add(b"gAMA", struct.pack(">I", round(100_000 * gamma)))
    return tags


def looks(data: bytes, preprocessing: Preprocessing = PREPROCESSING) -> list[np.ndarray]:
    return list(decode(data, preprocessing, DecodeLimits()).frames)


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    return float(np.abs(one.astype(int) - other).mean()) < 12


@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_what_a_profile_shows_is_judged_beside_the_numbers(image_format: str, options: dict[str, bool]) -> None:
    """Nearly white in its numbers, and a picture in every browser."""
    numbers = hidden(drawn(), HIDING)
    assert numbers.min() > 225
    data = saved(Image.fromarray(numbers), image_format, icc_profile=rgb_profile(HIDING), **options)
    first, *rest = sorted(looks(data), key=lambda look: -look.mean())
    assert alike(first, numbers)
    assert len(rest) == 1 and alike(rest[0], drawn())


def test_a_jpeg_that_hides_in_its_profile_is_seen() -> None:
    """Its numbers are not exact, which spoils fields and not what they are."""
    picture = Image.fromarray(hidden(drawn(), HIDING))
    data = saved(picture, "JPEG", quality=100, subsampling=0, icc_profile=rgb_profile(HIDING))
    assert len(looks(data)) == 2


def test_a_grey_picture_has_a_profile_of_its_own() -> None:
    """One for grey, which says nothing of a picture in colour."""
    grey = drawn()[..., 0]
    data = saved(Image.fromarray(hidden(grey, HIDING)), "PNG", icc_profile=grey_profile(HIDING))
    shown = min(looks(data), key=lambda look: look.mean())
    assert alike(shown, np.stack([grey] * 3, axis=2))
    assert len(looks(saved(Image.fromarray(drawn()), "PNG", icc_profile=grey_profile(HIDING)))) == 1


@pytest.mark.parametrize("mode", ["LA", "I;16"])
def test_a_profile_for_grey_is_followed_in_every_form_of_grey(mode: str) -> None:
    """With an alpha channel, and in 16 bits."""
    grey = hidden(drawn()[..., 0], HIDING)
    image = Image.fromarray(grey).convert("LA") if mode == "LA" else Image.fromarray(grey.astype(np.uint16) * 257)
    assert image.mode == mode
    (other,) = (look for look in looks(saved(image, "PNG", icc_profile=grey_profile(HIDING))) if look.mean() < 225)
    assert alike(other, drawn()[..., :1].repeat(3, 2))


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_what_one_colour_alone_hides_is_judged(channel: int) -> None:
    """Whichever it is."""
    levels = np.full((64, 64, 3), 255, np.uint8)
    levels[..., channel] = hidden(drawn()[..., channel], HIDING)
    assert len(looks(saved(Image.fromarray(levels), "PNG", icc_profile=rgb_profile(HIDING)))) == 2


@pytest.mark.parametrize(("height", "count"), [(2, 1), (8, 2)])
def test_what_a_profile_shows_is_judged_from_a_sixteenth_of_a_square_on(height: int, count: int) -> None:
    """An eighth is enough for a picture; what is smaller nobody could name."""
    levels = np.full((64, 64, 3), 255, np.uint8)
    levels[:height] = hidden(drawn()[:height], HIDING)
    assert len(looks(saved(Image.fromarray(levels), "PNG", icc_profile=rgb_profile(HIDING)))) == count


@pytest.mark.parametrize("gamma", [1.3, 3.5])
def test_a_profile_that_changes_levels_by_a_sixth_is_followed(gamma: float) -> None:
    """It need not turn white into a picture, nor make it darker."""
    data = saved(Image.new("RGB", (64, 64), (100, 100, 100)), "PNG", icc_profile=rgb_profile(gamma))
    plain, shown = sorted((int(look[0, 0, 0]) for look in looks(data)), key=lambda level: abs(level - 100))
    assert plain == 100 and 33 < abs(shown - 100) < 60 and (shown > 100) == (gamma < 2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK"])
def test_a_long_picture_is_judged_as_it_is_shown_all_along(mode: str) -> None:
    """Each square of it, turned as the picture is, on both grounds where something shows through."""
    exif = Image.Exif()
    exif[0x0112] = 3
    if mode == "CMYK":  # only cyan counts, of which there is ever more
        inks = np.zeros((64, 320, 4), np.uint8)
        inks[..., 0] = np.linspace(0, 255, 320)
        image = Image.frombytes("CMYK", (320, 64), inks.tobytes())
        data = saved(image, "JPEG", quality=95, icc_profile=key_profile(), exif=exif)
        shown = [look for look in looks(data) if look.std(axis=2).max() < 8]
        assert len(shown) == 5
        steps = np.concatenate([look.mean(axis=(0, 2)) for look in shown])
        assert (np.diff(steps) < 8).all() and steps[0] > 200 > 50 > steps[-1], "each from light to dark, in order"
        return
    numbers = hidden(np.tile(drawn(), (1, 5, 1)), HIDING)
    profile = rgb_profile(HIDING)
    if mode == "RGBA":
        numbers = np.concatenate([numbers, np.tile([[[255]], [[0]]], (32, 320, 1))], axis=2).astype(np.uint8)
    found = looks(saved(Image.fromarray(numbers, mode), "PNG", icc_profile=profile, exif=exif))
    assert len(found) == {"RGB": 10, "RGBA": 20}[mode]


def test_a_cmyk_picture_is_judged_in_its_inks_as_well() -> None:
    """Black ink everywhere, and a profile for which only cyan counts."""
    inks = np.zeros((64, 64, 4), np.uint8)
    inks[..., 3] = 255
    inks[:, 32:, 0] = 255
    data = saved(Image.frombytes("CMYK", (64, 64), inks.tobytes()), "JPEG", quality=95, icc_profile=key_profile())
    shown = max(looks(data), key=lambda look: look.std())
    assert shown[:, 40:].mean() > 240 and shown[:, :24].mean() < 15


def test_what_the_gamma_of_a_png_shows_is_judged() -> None:
    """Software that ignores it shows another picture than browsers do; a PNG that says sRGB has none."""
    numbers = hidden(drawn(), HIDING)
    tagged = saved(Image.fromarray(numbers), "PNG", pnginfo=gamma_tag(1 / HIDING))
    assert sum(alike(look, drawn()) for look in looks(tagged)) == 1
    plain = saved(Image.fromarray(numbers), "PNG", pnginfo=gamma_tag(1 / HIDING, srgb=True))
    assert len(looks(plain)) == 1


def test_a_gamma_of_nothing_changes_nothing() -> None:
    """A PNG may say 0, which is no reason to leave it undecided."""
    (look,) = looks(saved(Image.fromarray(drawn()), "PNG", pnginfo=gamma_tag(0.0)))
    assert alike(look, drawn())


def test_what_gamma_shows_on_a_dark_page_alone_is_judged() -> None:
    """Transparent, and so dark in its numbers that black shows nothing of it without its gamma."""
    alpha = np.random.default_rng(1).integers(0, 2, (8, 8, 1)).repeat(8, 0).repeat(8, 1) * 255
    numbers = np.concatenate([np.full((64, 64, 3), 14), alpha], axis=2).astype(np.uint8)
    data = saved(Image.fromarray(numbers, "RGBA"), "PNG", pnginfo=gamma_tag(2.0))
    shown = [look for look in looks(data) if look[alpha[..., 0] == 0].max() == 0]
    assert any(look[alpha[..., 0] == 255].min() > 100 for look in shown)


def test_profiles_that_change_little_cost_nothing() -> None:
    """sRGB itself, and the gamma that everybody writes."""
    picture = Image.fromarray(drawn())
    assert len(looks(saved(picture, "PNG", icc_profile=SRGB))) == 1
    assert len(looks(saved(picture, "PNG", pnginfo=gamma_tag(0.45455)))) == 1
    assert len(looks(saved(picture, "JPEG", icc_profile=rgb_profile(1.8)))) == 1


@pytest.mark.parametrize("profile", [b"no profile", rgb_profile(HIDING)[:200], key_profile(), b"\0" * 70_000])
def test_a_profile_that_nobody_can_follow_changes_nothing(profile: bytes) -> None:
    """Broken, cut off, or for other colours than the picture's."""
    assert len(looks(saved(Image.fromarray(drawn()), "PNG", icc_profile=profile))) == 1


def test_each_frame_of_an_animation_is_judged_as_it_is_shown() -> None:
    """And no frame makes way for another."""
    frames = [Image.fromarray(hidden(drawn(seed), HIDING)) for seed in range(10)]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], icc_profile=rgb_profile(HIDING))
    found = looks(data)
    assert len(found) == 2 * PREPROCESSING.max_frames <= PREPROCESSING.most_views
    assert sum(look.mean() > 225 for look in found) == PREPROCESSING.max_frames


def test_a_version_from_before_judges_the_numbers_alone() -> None:
    """Its preprocessing is part of it."""
    document = PREPROCESSING.to_json()
    del document["as_tagged"]
    data = saved(Image.fromarray(hidden(drawn(), HIDING)), "PNG", icc_profile=rgb_profile(HIDING))
    assert len(looks(data, Preprocessing.from_json(document))) == 1


def test_a_profile_that_is_srgb_but_for_its_tables_is_followed() -> None:
    """Where both are there browsers take the tables, and so must whoever asks whether it is sRGB."""
    data = saved(Image.fromarray(drawn()), "PNG", icc_profile=rgb_profile(2.2, inverting_table=True))
    assert sum(alike(look, 255 - drawn()) for look in looks(data)) == 1
    assert len(looks(saved(Image.fromarray(drawn()), "PNG", icc_profile=rgb_profile(2.2)))) == 1


@pytest.mark.parametrize(("one", "other", "order"), [("r", "g", [1, 0, 2]), ("g", "b", [0, 2, 1])])
def test_a_profile_that_mixes_colours_is_followed(one: str, other: str, order: list[int]) -> None:
    """Though grey stays grey, and the third colour what it is."""
    names = [f"{letter}XYZ".encode() for letter in (one, other)]
    swapped = SRGB.replace(names[0], b"mine").replace(names[1], names[0]).replace(b"mine", names[1])
    data = saved(Image.fromarray(drawn()), "PNG", icc_profile=swapped)
    assert sum(alike(look, drawn()[..., order]) for look in looks(data)) == 1
