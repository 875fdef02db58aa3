"""ICC profiles (ICC.1:2010) of a few hundred bytes, made to measure."""

import itertools
import struct

# D50 and sRGB's primaries, adapted to it.
WHITE = (0.9642, 1.0, 0.8249)
PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


def rgb_profile(gamma: float, *, inverting_table: bool = False) -> bytes:
    """sRGB's primaries; light is a number from 0 to 1 to the power of `gamma`.

    With a table besides, which goes before them and shows the negative of all but grey and the single colours.
    """
    colours = {b"rXYZ": PRIMARIES[0], b"gXYZ": PRIMARIES[1], b"bXYZ": PRIMARIES[2]}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))
    tags = {name: _xyz(*xyz) for name, xyz in (colours | {b"wtpt": WHITE}).items()} | curves
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags | ({b"A2B0": _negative()} if inverting_table else {}))


def grey_profile(gamma: float) -> bytes:
    """Grey; light is a number from 0 to 1 to the power of `gamma`."""
    return _profile(b"GRAY", b"XYZ ", b"mntr", {b"wtpt": _xyz(*WHITE), b"kTRC": _curve(gamma)})


def key_profile() -> bytes:
    """CMYK of which only cyan counts: none of it is black, all of it white."""
    ramp = bytes(range(256))
    grid = b"".join(bytes((255 if corner & 8 else 0, 128, 128)) for corner in range(16))  # Lab; cyan changes slowest
    unit = struct.pack(">9i", *(65536 * (at % 4 == 0) for at in range(9)))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + unit + ramp * 4 + grid + ramp * 3
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table, b"wtpt": _xyz(*WHITE)})


def _light(number: float) -> float:
    """sRGB's curve."""
    return float(((number + 0.055) / 1.055) ** 2.4 if number > 0.04045 else number / 12.92)


def _negative() -> bytes:
    """Numbers to the XYZ of what they show in sRGB: a table of 16-bit numbers, 17 steps a colour."""
    grid = b""
    for step in itertools.product(range(17), repeat=3):
        as_it_is = len(set(step)) == 1 or step.count(0) == 2
        light = [_light(at / 16 if as_it_is else 1 - at / 16) for at in step]
        xyz = [sum(part * primary[axis] for part, primary in zip(light, PRIMARIES, strict=True)) for axis in range(3)]
        grid += struct.pack(">3H", *(round(32768 * value) for value in xyz))
    unit = struct.pack(">9i", *(65536 * (at % 4 == 0) for at in range(9)))
    ramp = struct.pack(">2H", 0, 65535)
    return b"mft2\0\0\0\0" + bytes((3, 3, 17, 0)) + unit + struct.pack(">2H", 2, 2) + ramp * 3 + grid + ramp * 3


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma)) + b"\0\0"


def _profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s", start + len(body), b"\0" * 4, 0x02400000, kind, space, connection, b"acsp")
    head += b"\0" * 28 + struct.pack(">3i", *(round(65536 * value) for value in WHITE))
    return head.ljust(128, b"\0") + table + body
