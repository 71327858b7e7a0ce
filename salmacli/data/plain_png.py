"""The simplest PNGs read quickly: grey or indexed, 8 bits or 1 bit a pixel, rows neither filtered nor interlaced.

Label pictures are nearly always of this kind, and inflating them is most of the time of scoring a folder. Whatever
else a PNG may be is left to Pillow.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

zlib: Any
try:
    from zlib_ng import zlib_ng as zlib
except ImportError:  # no wheel for this Python: slower, the same
    import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _INDEXED = 0, 3
# Chunks that do not change what is stored for a pixel; tRNS and the like only change how it looks.
_NEEDED = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}


def read_plain_png(content: bytes) -> NDArray[np.uint8] | None:
    """Reads a PNG of the simplest kind.

    Args:
        content: The file's bytes.

    Returns:
        (H, W) stored values, perhaps not contiguous; None where the file is not of that kind or not intact: Pillow
        then reads it, or says what is wrong with it.

    Source: PNG specification (third edition), sections 5, 7.2 and 9.
    """
    header, data = _chunks(content)
    if header is None:
        return None
    width, height, depth, colour, compression, filtering, interlaced = struct.unpack(">IIBBBBB", header)
    if compression or filtering or interlaced or not width or not height:
        return None
    if colour not in (_GREY, _INDEXED) or depth not in (1, 8):
        return None
    line = 1 + (width * depth + 7) // 8
    if height * line > (Image.MAX_IMAGE_PIXELS or 1 << 31):
        return None
    inflate = zlib.decompressobj()
    try:
        # Never more than the picture needs, whatever the stream would unfold to.
        raw = inflate.decompress(data, height * line + 1)
    except zlib.error:
        return None
    if len(raw) != height * line or not inflate.eof:
        return None
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(height, line)
    if rows[:, 0].any():
        return None
    return rows[:, 1:] if depth == 8 else np.unpackbits(rows[:, 1:], axis=1, count=width)


def is_bomb(content: bytes) -> bool:
    """Whether a PNG says that it has more pixels than Pillow takes without a warning."""
    if content[:8] != _SIGNATURE or len(content) < 24:
        return False
    width, height = struct.unpack_from(">II", content, 16)
    return bool(width * height > (Image.MAX_IMAGE_PIXELS or 1 << 31))


def _chunks(content: bytes) -> tuple[bytes | None, bytes]:
    """Header and compressed data; no header where the file is not whole."""
    broken: tuple[None, bytes] = (None, b"")
    if content[:8] != _SIGNATURE:
        return broken
    header, data, place = b"", [], 8
    while True:
        if place + 12 > len(content):
            return broken
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 8 + length
        if end + 4 > len(content):
            return broken
        if kind in _NEEDED:
            if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
                return broken
            if (kind == b"IHDR") != (not header):
                return broken  # there is one, and it comes first
            if kind == b"IHDR":
                header = content[place + 8 : end]
            elif kind == b"IDAT":
                data.append(content[place + 8 : end])
            elif kind == b"IEND":
                return (header, b"".join(data)) if len(header) == 13 else broken
        elif not kind[0] & 0x20:  # a critical chunk that is not known
            return broken
        place = end + 4
