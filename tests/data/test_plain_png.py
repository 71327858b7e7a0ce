"""The quick reader against Pillow, and what it leaves to Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from salmacli.data.plain_png import read_plain_png


def png(values, mode, **options):
    picture = Image.fromarray(values if mode != "1" else values > 0).convert(mode) if mode != "P" else None
    if picture is None:
        picture = Image.fromarray(values, mode="L")
        picture.putpalette([n % 256 for n in range(768)])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def written(width, height, raw, depth=8, colour=3, interlaced=0, more=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (16, 9), (40, 65)])
def test_the_same_as_pillow(size):
    values = np.random.default_rng(0).integers(0, 256, size=size, dtype=np.uint8)
    content = png(values, "P")
    assert np.array_equal(read_plain_png(content), values)
    bits = read_plain_png(png(values, "1"))
    if bits is not None:  # Pillow may filter
        assert np.array_equal(bits, (values > 0).astype(np.uint8))


def test_one_bit_rows_end_within_a_byte():
    raw = b"".join(bytes([0, 0b10100000, 0b11000000]) for _ in range(2))
    read = read_plain_png(written(10, 2, raw, depth=1, colour=0))
    assert read.tolist() == [[1, 0, 1, 0, 0, 0, 0, 0, 1, 1]] * 2


def test_everything_else_is_left_to_pillow():
    plain = bytes(4) * 3
    whole = written(3, 3, plain)
    assert read_plain_png(whole) is not None
    assert read_plain_png(written(3, 3, b"\x01" + plain[1:])) is None  # filtered
    assert read_plain_png(written(3, 3, plain, interlaced=1)) is None
    assert read_plain_png(written(3, 3, bytes(10) * 3, colour=2)) is None
    assert read_plain_png(written(3, 3, bytes(7) * 3, depth=16, colour=0)) is None
    assert read_plain_png(b"GIF89a") is None
    assert read_plain_png(b"") is None


def test_what_is_not_intact_is_left_to_pillow():
    plain = bytes(4) * 3
    whole = written(3, 3, plain)
    for end in range(len(whole)):
        assert read_plain_png(whole[:end]) is None
    for place in range(8, len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        assert read_plain_png(bytes(changed)) is None
    assert read_plain_png(written(3, 3, plain[:-1])) is None
    assert read_plain_png(written(3, 3, plain + b"\0")) is None
    assert read_plain_png(written(3, 3, plain, more=chunk(b"ABCD", b""))) is None
    assert read_plain_png(written(3, 3, plain, more=chunk(b"tEXt", b"k\0v"))) is not None


def test_a_picture_that_unfolds_without_end_is_not_unfolded():
    assert read_plain_png(written(60_000, 60_000, bytes(1000))) is None
    assert read_plain_png(written(3, 3, bytes(10_000_000))) is None
