"""Bytes to frames: what is shown to the network, and what is refused with which reason."""

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from tests.support.profiles import rgb_profile
from trainer.plan import WHOLE_FROM
from worker.errors import ContentError, UsageError
from worker.model.pixels import on_ground, straight
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits, decode, frames_to_judge

PREPROCESSING = Preprocessing()
LIMITS = DecodeLimits()
BLUE = (20, 40, 200)
UNDONE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What turns an upright picture into one that is stored with that orientation."""
WHITE = (255, 255, 255)
LATER = ("on_black", "as_tagged", "long_from")
"""What a version from before has not."""
MODES = [("1", "PNG"), ("P", "GIF"), ("I;16", "PNG"), ("LA", "PNG"), ("CMYK", "JPEG"), ("RGB", "BMP"), ("RGBA", "WEBP")]


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def animation(image_format: str, colours: list[tuple[int, int, int]], durations_ms: list[int]) -> bytes:
    frames = [Image.new("RGB", (40, 40), colour) for colour in colours]
    options = {"save_all": True, "append_images": frames[1:], "duration": durations_ms, "loop": 0}
    if image_format in ("WEBP", "PNG"):
        options["lossless" if image_format == "WEBP" else "optimize"] = image_format == "WEBP"
    return encoded(frames[0], image_format, **options)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def seen(data: bytes) -> Decoded:
    return decode(data, PREPROCESSING, LIMITS)


def centre(data: bytes) -> tuple[int, ...]:
    return tuple(int(level) for level in seen(data).frames[0, 112, 112])


def refused(data: bytes, limits: DecodeLimits = LIMITS) -> str:
    with pytest.raises(ContentError) as caught:
        decode(data, PREPROCESSING, limits)
    assert " object at 0x" not in caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP"])
def test_each_format_becomes_one_frame_of_its_colour(image_format: str) -> None:
    """Every listed format is opened; a still has one frame of crop x crop pixels and keeps its name and size."""
    decoded = seen(encoded(Image.new("RGB", (300, 280), BLUE), image_format))
    assert decoded.frames.shape == (1, 224, 224, 3)
    assert decoded.frames.dtype == np.uint8
    assert (decoded.format, decoded.width, decoded.height) == (image_format, 300, 280)
    assert np.abs(decoded.frames[0].astype(int) - BLUE).max() <= 6


@pytest.mark.parametrize("size", [(640, 480), (333, 517), (256, 256), (100, 30), (257, 3000), (1, 50), (1999, 1000)])
def test_pixels_are_those_of_torchvision(size: tuple[int, int]) -> None:
    """Resize then CenterCrop of torchvision on the same picture gives the same pixels, up to one rounding."""
    image = noise(*size)
    expected = np.asarray(Compose([Resize(256), CenterCrop(224)])(image)).astype(int)
    frames = seen(encoded(image, "PNG")).frames
    assert np.abs(frames[len(frames) // 2] - expected).max() <= 1


def test_a_version_scales_as_it_says() -> None:
    """Bicubic where it was fitted on that."""
    image = noise(640, 480)
    exactly = Compose([Resize(256, InterpolationMode.BICUBIC), CenterCrop(224)])
    frames = decode(encoded(image, "PNG"), Preprocessing(interpolation="bicubic"), LIMITS).frames
    assert np.abs(frames[0].astype(int) - np.asarray(exactly(image))).max() <= 1


def as_shown(data: bytes) -> np.ndarray:
    """What torchvision makes of the whole picture, turned first."""
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    return np.asarray(Compose([Resize(256), CenterCrop(224)])(shown)).astype(int)


def decoded_at(data: bytes, fraction: int, parameters: Preprocessing) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft(None, (image.width // fraction, image.height // fraction))
    whole = Compose([Resize(parameters.resize), CenterCrop(parameters.crop)])(image)
    return np.asarray(whole).astype(int)


@pytest.mark.parametrize("size", [(1280, 960), (2400, 1600), (4100, 3100), (1025, 769), (3277, 2047), (3391, 6029)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(size: tuple[int, int], orientation: int) -> None:
    """Decoding a large JPEG at a fraction of its size changes levels by a few steps at most, and cuts out the same,
    however it is turned and whatever its sides leave over."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(60, 40).resize(size, Image.Resampling.BICUBIC), "JPEG", quality=90, exif=exif)
    difference = np.abs(seen(data).frames[0] - as_shown(data))
    assert difference.max() <= 4
    assert 0 < difference.mean() < 0.7


@pytest.mark.parametrize(
    ("size", "parameters", "fraction"),
    [
        ((900, 767), {}, 1), ((900, 768), {}, 2), ((768, 900), {}, 2), ((4100, 4095), {}, 2), ((4100, 4096), {}, 4),
        ((800, 764), {"resize": 255}, 1), ((800, 765), {"resize": 255}, 2),
        ((2050, 2047), {"resize": 64, "crop": 56}, 4), ((2050, 2048), {"resize": 64, "crop": 56}, 8),
        ((1100, 1023), {"jpeg_margins": (2.0, 2.0)}, 1), ((1100, 1024), {"jpeg_margins": (2.0, 2.0)}, 2),
        ((2100, 2047), {"jpeg_margins": (2.0, 2.0)}, 2), ((2100, 2048), {"jpeg_margins": (2.0, 2.0)}, 4),
        ((4100, 4095), {"jpeg_margins": (2.0, 2.0)}, 4), ((4100, 4096), {"jpeg_margins": (2.0, 2.0)}, 8),
    ],
)  # fmt: skip
def test_at_what_fraction_a_jpeg_is_decoded(size: tuple[int, int], parameters: dict[str, Any], fraction: int) -> None:
    """At half where 1.5 times the pixels needed remain, at 1/4 and 1/8 where four times as many do, by default."""
    data = encoded(noise(*size), "JPEG", quality=90)
    preprocessing = Preprocessing(**parameters)
    given = decode(data, preprocessing, LIMITS).frames[0]
    beside = {at: np.abs(given - decoded_at(data, at, preprocessing)).mean() for at in (1, 2, 4, 8)}
    assert min(beside, key=lambda at: beside[at]) == fraction, beside


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_extreme_sides_need_no_memory(size: tuple[int, int]) -> None:
    """A line of 60,000 pixels is judged; scaling it as a whole would take 11 GB."""
    assert (seen(encoded(Image.new("RGB", size, BLUE), "PNG")).frames == BLUE).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize(("share", "squares"), [(2.4, 1), (2.5, 3), (4, 5), (30, 7)])
def test_a_long_picture_is_judged_along_its_length(share: float, squares: int, tall: bool, orientation: int) -> None:
    """Not in its middle alone, which is the middle square as before: what stands at an end is seen, too. However it is
    shown, and however it is stored for that."""
    across, along = 100, int(100 * share)
    image = Image.new("RGB", (along, across), BLUE)
    image.paste((200, 30, 30), (0, 0, 30, across))  # its beginning, which no centre shows
    upright = image.transpose(Image.Transpose.ROTATE_270) if tall else image
    stored = upright.transpose(UNDONE[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    frames = seen(encoded(stored, "PNG", exif=exif)).frames
    assert len(frames) == squares
    red = [bool((frame[..., 0] > 150).mean() > 0.05) for frame in frames]
    assert red == [squares > 1] + [False] * (squares - 1)
    (middle,) = decode(encoded(stored, "PNG", exif=exif), Preprocessing(long_from=0.0), LIMITS).frames
    assert (frames[squares // 2] == middle).all()


def test_a_long_picture_is_judged_all_along_on_black_too() -> None:
    """Where it shows something there; on white as much as without that."""
    opaque = Image.new("LA", (900, 100), (90, 255))
    pixel, chalk = opaque.copy(), opaque.copy()
    pixel.putpixel((450, 50), (0, 0))
    chalk.paste((255, 0), (0, 20, 900, 60))
    counts = [len(seen(encoded(image, "PNG")).frames) for image in (opaque, pixel, chalk)]
    assert counts == [7, 7, 14]


@pytest.mark.parametrize("share", [1 / 40, 1 / 10])
def test_what_white_hides_is_judged_from_a_sixteenth_of_a_square_on(share: float) -> None:
    """A tenth is enough for a picture; what is smaller nobody could name."""
    image = Image.new("LA", (256, 256), (90, 255))
    image.paste((255, 0), (16, 16, 240, 16 + round(224 * share)))
    assert len(seen(encoded(image, "PNG")).frames) == (2 if share > 1 / 16 else 1)


@pytest.mark.parametrize("long_from", [Preprocessing().long_from, WHOLE_FROM])
def test_squares_of_a_long_picture_leave_nothing_out(long_from: float) -> None:
    """Up to seven times as long as it is wide each part of it is in one of them, but for the margins of its ends."""
    for along in range(int(100 * long_from) + 1, 650, 7):
        ramp = np.linspace(0, 255, along).astype(np.uint8)
        image = Image.fromarray(np.tile(ramp, (100, 1)))
        frames = decode(encoded(image, "PNG"), Preprocessing(long_from=long_from), LIMITS).frames
        gaps = np.diff([0, *sorted({int(level) for frame in frames for level in frame[112, :, 0]}), 255])
        margin = 255 * 16 / (2.56 * along)  # in levels, of either end
        assert gaps.max() <= margin + 2, along


def test_whole_photographs_are_three_squares() -> None:
    """Of the sides that cameras and screens have; one that is nearly square stays one."""
    counts = {
        sides: len(decode(encoded(noise(*sides), "PNG"), Preprocessing(long_from=WHOLE_FROM), LIMITS).frames)
        for sides in ((400, 300), (300, 450), (480, 270), (390, 844), (320, 300))
    }
    assert counts == {(400, 300): 3, (300, 450): 3, (480, 270): 3, (390, 844): 3, (320, 300): 1}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(300, 200), (411, 290), (257, 385)])
def test_exif_orientation_is_applied(orientation: int, size: tuple[int, int]) -> None:
    """A picture is judged as it is shown: turned and mirrored as its EXIF block says, also where the crop leaves an
    odd number of pixels on its sides."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(*size), "PNG", exif=exif)
    decoded = seen(data)
    assert (decoded.width, decoded.height) == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size
    assert np.abs(decoded.frames[0] - as_shown(data)).max() <= 1


def exif_block(*tags: tuple[int, int, int, int], order: str = "<", entries: int | None = None) -> bytes:
    """An EXIF block whose only directory has these tags: (tag, type, count, value); `entries`: how many it claims."""
    packed = [
        struct.pack(f"{order}HHI", *tag[:3])
        + struct.pack(f"{order}{'HH' if tag[1] == 3 else 'I'}", *((tag[3], 0) if tag[1] == 3 else tag[3:]))
        for tag in tags
    ]
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    count = struct.pack(f"{order}H", len(tags) if entries is None else entries)
    return b"Exif\0\0" + head + struct.pack(f"{order}I", 8) + count + b"".join(packed) + b"\0" * 4


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("tags", "upright"),
    [
        ([(0x0112, 3, 1, 3)], False),
        ([(0x0110, 4, 1, 7), (0x0112, 3, 1, 3), (0x0112, 3, 1, 1)], False),  # the first of two
        ([(0x0112, 4, 1, 3)], True),  # 32 bits
        ([(0x0112, 3, 2, 3)], True),  # two numbers
        ([(0x0112, 3, 1, 9)], True),
    ],
)
def test_orientation_is_what_browsers_read(order: str, tags: list[tuple[int, int, int, int]], upright: bool) -> None:
    """Or a picture is judged upside down that everybody sees upright."""
    image = noise(300, 300)
    judged = seen(encoded(image, "PNG", exif=exif_block(*tags, order=order))).frames
    shown = image if upright else image.rotate(180)
    assert (judged == seen(encoded(shown, "PNG")).frames).all()


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(exif_block((0x0110, 4, 1, 7), (0x0112, 3, 1, 3), entries=1), id="behind the directory's end"),
        pytest.param(exif_block((0x0112, 3, 1, 3)).replace(b"II*", b"XX*"), id="neither byte order"),
    ],
)
def test_what_is_no_tag_of_the_directory_turns_nothing(block: bytes) -> None:
    """Or a picture is judged mirrored or upside down that everybody sees upright."""
    image = noise(300, 300)
    assert (seen(encoded(image, "PNG", exif=block)).frames == seen(encoded(image, "PNG")).frames).all()


def test_orientation_in_xmp_is_ignored() -> None:
    """As by browsers, whatever the format; Pillow would turn the picture."""
    image, xmp = noise(300, 300), b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="3"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    text.add_text("Raw profile type exif", "\nexif\n34\n" + exif_block((0x0112, 3, 1, 3)).hex())
    assert (seen(encoded(image, "PNG", pnginfo=text)).frames == seen(encoded(image, "PNG")).frames).all()
    lossless = {"lossless": True, "exact": True}
    plain, turned = (encoded(image, "WEBP", **lossless, **more) for more in ({}, {"xmp": xmp}))
    assert Image.open(io.BytesIO(turned)).getexif().get(0x0112) == 3
    assert (seen(turned).frames == seen(plain).frames).all()


def test_a_broken_exif_block_does_not_spoil_the_picture() -> None:
    """EXIF that contradicts itself is ignored, as browsers do."""
    broken = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\0\0\0\x01"
    assert seen(encoded(Image.new("RGB", (40, 40), BLUE), "JPEG", exif=broken)).frames.shape[0] == 1


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Image.new("RGBA", (40, 40), (*BLUE, 0)), WHITE),
        (lambda: Image.new("RGBA", (40, 40), (*BLUE, 255)), BLUE),
        (lambda: Image.new("LA", (40, 40), (0, 0)), WHITE),
        (lambda: Image.new("LA", (40, 40), (0, 128)), (127, 127, 127)),
        (lambda: Image.new("L", (40, 40), 90), (90, 90, 90)),
        (lambda: Image.new("1", (40, 40), 1), WHITE),
        (lambda: Image.new("RGB", (40, 40), BLUE).quantize(4), BLUE),
        (lambda: Image.fromarray(np.full((40, 40), 32896, np.uint16)), (128, 128, 128)),
        (lambda: Image.fromarray(np.full((40, 40), 65535, np.uint16)), WHITE),
    ],
)
def test_modes_become_rgb_on_white(make: Callable[[], Image.Image], expected: tuple[int, int, int]) -> None:
    """Transparency lies on white; 16 bits are scaled to 8, not cut off."""
    assert centre(encoded(make(), "PNG")) == expected


def test_cmyk_becomes_rgb() -> None:
    """A print-ready JPEG is judged by its colours."""
    red = centre(encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG"))
    assert red[0] > 240
    assert max(red[1:]) < 15


def test_palette_with_transparent_entries_lies_on_white() -> None:
    """Both forms of palette transparency: one index, and an alpha level for each entry."""
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, *BLUE])
    assert centre(encoded(image, "PNG", transparency=1)) == WHITE
    assert centre(encoded(image, "PNG", transparency=b"\xff\x00")) == WHITE
    assert centre(encoded(image, "PNG", transparency=0)) == BLUE


def hidden_on_white(light: Image.Image, dark: Image.Image) -> Image.Image:
    """Shows `light` (grey, 128 and above) on white and `dark` (below) on black."""
    on_white, on_black = np.asarray(light, np.int16), np.asarray(dark, np.int16)
    alpha = 255 - (on_white - on_black)
    grey = on_black * 255 // np.maximum(alpha, 1)
    return Image.fromarray(np.stack([grey, alpha], axis=-1).astype(np.uint8), "LA")


def grey_noise(seed: int, lowest: int, highest: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(lowest, highest, (9, 9), dtype=np.uint8)
    return Image.fromarray(small).resize((256, 256), Image.Resampling.NEAREST)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "AVIF"])
def test_what_white_hides_is_judged_on_black(image_format: str) -> None:
    """One file, two pictures: the one that people with a dark page see is judged as well."""
    light, dark = grey_noise(1, 140, 255), grey_noise(2, 0, 115)
    options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100}}.get(image_format, {})
    frames = seen(encoded(hidden_on_white(light, dark).convert("RGBA"), image_format, **options)).frames
    assert len(frames) == 2
    for frame, shown in zip(frames, (light, dark), strict=True):
        difference = np.abs(np.asarray(shown, int)[16:240, 16:240, None] - frame)
        assert difference.mean() < 3, "one of the two pictures is not as it is shown"


def test_black_is_only_looked_at_where_it_shows_something_else() -> None:
    """Not for an opaque picture with an alpha channel, a black drawing, or a version from before the field."""
    drawing = Image.new("LA", (256, 256), (0, 0))
    drawing.paste((0, 255), (80, 80, 180, 180))
    chalk = Image.new("LA", (256, 256), (255, 0))
    chalk.paste((255, 255), (80, 80, 180, 180))
    counts = [len(seen(encoded(image, "PNG")).frames) for image in (noise(256, 256).convert("RGBA"), drawing, chalk)]
    assert counts == [1, 1, 2]
    before = {name: value for name, value in PREPROCESSING.to_json().items() if name not in LATER}
    assert len(decode(encoded(chalk, "PNG"), Preprocessing.from_json(before), LIMITS).frames) == 1


def flat_animation(frames: list[Image.Image]) -> bytes:
    """A WebP of these, lossless."""
    first, *others = frames
    options = {"duration": 100, "lossless": True, "exact": True, "minimize_size": False}
    return encoded(first, "WEBP", save_all=True, append_images=others, **options)


def test_a_transparent_animation_is_judged_on_black_at_every_moment() -> None:
    """And on white as if it were not transparent. The middle one is of the middle, on white: that is fitted on."""
    levels = range(140, 240, 5)
    frames = [hidden_on_white(Image.new("L", (40, 40), at), Image.new("L", (40, 40), at - 110)) for at in levels]
    judged = seen(flat_animation([frame.convert("RGBA") for frame in frames])).frames[:, 0, 0, 0].astype(int)
    on_white = [140, 150, 165, 175, 190, 200, 215, 225]
    assert sorted(judged) == pytest.approx(sorted([*on_white, *(at - 110 for at in on_white)]), abs=3)
    assert judged[(len(judged) - 1) // 2] == pytest.approx(on_white[3], abs=3)


def test_a_transparent_frame_hides_no_other() -> None:
    """Eight moments are judged, and one of them on black as well: it takes no other's place."""
    chalk = Image.new("RGBA", (40, 40), (255, 255, 255, 100))
    others = [Image.new("RGBA", (40, 40), (0, 0, at, 255)) for at in range(30, 240, 30)]
    judged = seen(flat_animation([chalk, *others])).frames[:, 0, 0, :]
    assert len(judged) == 9
    assert {(0, 0, at) for at in range(30, 240, 30)} <= {tuple(map(int, colour)) for colour in judged}


@pytest.mark.parametrize(("level", "shown"), [(128, 0), (129, 1), (65406, 254), (65407, 255)])
def test_16_bits_become_the_nearest_level(level: int, shown: int) -> None:
    """White stays white, and nothing is cut off: 65,535 is 255 * 257."""
    assert centre(encoded(Image.fromarray(np.full((40, 40), level, np.uint16)), "PNG")) == (shown,) * 3


@pytest.mark.parametrize(
    ("level", "transparent", "expected"), [(4660, 4660, WHITE), (0, 0, WHITE), (30_000, 4660, (117, 117, 117))]
)
def test_transparent_16_bit_level_lies_on_white(level: int, transparent: int, expected: tuple[int, ...]) -> None:
    """A 16-bit grey level named as transparent is shown white, and no other is."""
    image = Image.fromarray(np.full((40, 40), level, np.uint16))
    assert centre(encoded(image, "PNG", transparency=transparent)) == expected


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "P",
        "RGB",
        "RGBA",
        "RGBX",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "F",
        "LA",
        "PA",
        "La",
        "RGBa",
        "I;16",
        "I;16L",
        "I;16B",
    ],
)
def test_every_mode_of_pillow_becomes_rgb(mode: str) -> None:
    """Whatever mode a plugin yields, it becomes RGB of the same size."""
    rgb = on_ground(straight(Image.new(mode, (5, 4))), "white")
    assert (rgb.mode, rgb.size) == ("RGB", (5, 4))


def test_levels_out_of_range_are_clipped() -> None:
    """Integer and float pictures beyond the range are clipped, and what is no number is black."""
    assert straight(Image.fromarray(np.array([[-5, 70_000]], np.int32))).getpixel((1, 0)) == WHITE
    floats = Image.fromarray(np.array([[np.nan, 1e9, -3.0, 99.6]], np.float32))
    assert np.asarray(straight(floats))[0, :, 0].tolist() == [0, 255, 0, 100]


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_a_short_animation_is_judged_whole(image_format: str) -> None:
    """Up to max_frames frames are all judged, in order, however briefly they are shown."""
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    frames = seen(animation(image_format, colours, [5000, 20, 20])).frames
    assert len(frames) == 3
    assert [int(frame[112, 112].argmax()) for frame in frames] == [0, 1, 2]


def test_an_animated_avif_is_judged_whole() -> None:
    """AVIF sequences are animations like the others."""
    data = encoded(
        Image.new("RGB", (64, 64), (250, 0, 0)),
        "AVIF",
        save_all=True,
        duration=[100, 100],
        append_images=[Image.new("RGB", (64, 64), (0, 250, 0))],
    )
    assert [int(frame[112, 112].argmax()) for frame in seen(data).frames] == [0, 1]


def test_further_pictures_in_a_jpeg_are_not_judged() -> None:
    """A preview or a gain map, which nobody is shown."""
    data = encoded(noise(300, 300), "MPO", save_all=True, append_images=[Image.new("RGB", (300, 300), BLUE)])
    decoded = seen(data)
    assert (decoded.format, len(decoded.frames)) == ("JPEG", 1)


def test_a_long_animation_is_judged_by_frames_spread_over_its_time() -> None:
    """No more than max_frames of 30 frames, the first among them, and some of the last third."""
    colours = [(8 * index, 0, 0) for index in range(30)]
    frames = seen(animation("GIF", colours, [100] * 30)).frames
    reds = [int(frame[112, 112, 0]) for frame in frames]
    assert len(reds) == 8
    assert reds[0] == 0
    assert reds == sorted(reds)
    assert reds[-1] >= 8 * 20


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_what_an_animation_shows_for_longer_is_judged_more(image_format: str) -> None:
    """By its own durations: nine tenths of the time belong to the second half."""
    colours = [(12 * index, 0, 0) for index in range(20)]
    frames = seen(animation(image_format, colours, [100] * 10 + [900] * 10)).frames
    assert sum(int(frame[112, 112, 0]) >= 118 for frame in frames) == 7


def test_of_a_long_and_narrow_animation_each_frame_is_judged_in_its_middle() -> None:
    """Along its length as well it would be more squares than a decoder may answer with."""
    strips = [Image.new("RGB", (400, 100), (100 + 20 * index, 0, 0)) for index in range(8)]
    data = encoded(strips[0], "GIF", save_all=True, append_images=strips[1:], duration=100)
    assert len(seen(data).frames) == 8


def test_one_long_frame_does_not_hide_the_rest() -> None:
    """Where one frame takes nearly all of the time, the others fill the remaining places, the longest first."""
    assert frames_to_judge([60_000.0, 50.0, 80.0, 50.0], 3) == [0, 1, 2]
    assert frames_to_judge([50.0, 60_000.0, 50.0, 50.0, 90.0], 3) == [0, 1, 4]


def test_frames_without_a_duration_count_like_browsers_show_them() -> None:
    """A duration of 0 to 10 ms is shown for 100 ms and counts as much as 100 ms written out."""
    assert frames_to_judge([0.0, 0.0, 5.0, 10.0, *[100.0] * 4], 4) == [0, 2, 4, 6]


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=60), st.integers(1, 12))
def test_judged_frames_are_sorted_distinct_and_begin_with_the_first(durations: list[float], most: int) -> None:
    """For any durations: as many frames as there are or may be, in order, the first one included."""
    chosen = frames_to_judge(durations, most)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    assert chosen[-1] < len(durations)
    assert len(chosen) == min(most, len(durations))


def test_a_broken_later_frame_makes_the_whole_unreadable() -> None:
    """An animation that cannot be seen to its end is not judged by its beginning."""
    whole = animation("GIF", [(250, 0, 0), (0, 250, 0), (0, 0, 250)], [100] * 3)
    noisy = [noise(64, 64), noise(65, 64).crop((0, 0, 64, 64)), noise(66, 64).crop((0, 0, 64, 64))]
    whole = encoded(noisy[0], "GIF", save_all=True, append_images=noisy[1:], duration=100)
    assert len(seen(whole).frames) == 3
    assert refused(whole[: len(whole) - 500]) == "unreadable"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP"])
def test_a_truncated_picture_is_unreadable(image_format: str) -> None:
    """Half a file is never judged, whatever its format."""
    data = encoded(noise(120, 90), image_format)
    assert refused(data[: len(data) // 2]) == "unreadable"


@pytest.mark.parametrize("magic", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8 "])
def test_a_known_beginning_with_nothing_behind_is_unreadable(magic: bytes) -> None:
    """What begins like one of the formats is broken, not of another format."""
    assert refused(magic + b"\0" * 40) == "unreadable"


def test_an_empty_file_is_unreadable() -> None:
    """Nothing at all is a failed upload rather than another format."""
    assert refused(b"") == "unreadable"


@pytest.mark.parametrize("image_format", ["TIFF", "PPM", "ICO", "JPEG2000", "PDF"])
def test_other_formats_are_unsupported(image_format: str) -> None:
    """What Pillow could open but is not listed is named as such, and so is text."""
    assert refused(encoded(Image.new("RGB", (32, 32)), image_format)) == "unsupported_format"
    assert refused(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == "unsupported_format"


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    """The size in the header decides; a file without any pixel data behind it is refused the same way."""
    data = encoded(Image.new("RGB", (101, 100)), "PNG")
    assert refused(data, DecodeLimits(max_pixels=10_000)) == "too_large"
    assert refused(data[:60], DecodeLimits(max_pixels=10_000)) == "too_large"
    assert decode(data, PREPROCESSING, DecodeLimits(max_pixels=10_100)).width == 101


def test_a_later_frame_with_too_many_pixels_is_refused() -> None:
    """A GIF whose second frame is larger than what its header says."""
    small, large = (encoded(Image.new("L", (side, side), 200), "GIF") for side in (10, 100))
    data = small[:-1] + large[13 + 3 * (2 << (large[10] & 7)) :]
    assert len(decode(data, PREPROCESSING, DecodeLimits(max_pixels=10_000)).frames) == 2
    assert refused(data, DecodeLimits(max_pixels=9_999)) == "too_large"


def test_a_bomb_is_refused() -> None:
    """A header that promises billions of pixels is `too_large`, whatever the limit."""
    header = b"BM" + b"\0" * 12 + (40).to_bytes(4, "little") + (100_000).to_bytes(4, "little") * 2
    header += (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + b"\0" * 24
    assert refused(header) == "too_large"


def test_limits_check_themselves() -> None:
    """A limit that Pillow's own would undercut, or that lets nothing through, is refused when it is made."""
    for pixels in (0, 10**9):
        with pytest.raises(UsageError):
            DecodeLimits(max_pixels=pixels)


def test_decoder_processes_do_not_load_torch() -> None:
    """Their program brings in neither torch nor anything of it: decoders start fast and stay small."""
    code = "import sys, worker.decoder_program, worker.model.reading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


OPENED = """
import sys
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits, decode, load_readers
load_readers()
pictures, opened = [bytes.fromhex(line) for line in sys.stdin], []
sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event in ("open", "import") else None)
for picture in pictures:
    decode(picture, Preprocessing(), DecodeLimits())
sys.exit(str(opened) if opened else 0)
"""


def test_reading_a_picture_opens_no_file() -> None:
    """No module that is imported only then either: a decoder process, which is confined by that time, could not."""
    pictures = [encoded(noise(60, 40), form, exif=exif_block((0x0112, 3, 1, 6))) for form in ("JPEG", "WEBP", "AVIF")]
    pictures += [encoded(Image.new(mode, (40, 40)), form) for mode, form in MODES]
    pictures += [animation(form, [BLUE, WHITE, (9, 9, 9)], [100] * 3) for form in ("GIF", "PNG", "WEBP", "AVIF")]
    pictures.append(encoded(noise(60, 40), "MPO", save_all=True, append_images=[noise(60, 40)]))
    pictures += [encoded(noise(60, 40), "JPEG", icc_profile=rgb_profile(gamma)) for gamma in (2.2, 9.0)]
    lines = "\n".join(picture.hex() for picture in pictures)
    ended = subprocess.run([sys.executable, "-c", OPENED], input=lines, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
