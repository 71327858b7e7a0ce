"""Masks as COCO run-length encoding: ``{"size": [height, width], "counts": str}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from salmacli.errors import DataError

RLE = dict[str, Any]
Mask = NDArray[np.bool_]


def encode(mask: NDArray[Any]) -> RLE:
    """Encodes a mask.

    Args:
        mask: (H, W), everything that is not zero is foreground.
    """
    encoded = coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode(rle: Mapping[str, Any]) -> Mask:
    """Decodes an RLE whose counts are a COCO string or a plain list of run lengths.

    Returns:
        (H, W) booleans.

    Raises:
        DataError: size or counts are missing, or the runs do not fill the size exactly.
    """
    height, width = size_of(rle)
    runs = _runs(rle)
    # pycocotools trusts the runs and writes past its array when they are too long, so it never sees them.
    if runs.sum() != height * width:
        raise DataError(f"RLE covers {runs.sum()} pixels but its size {height}x{width} has {height * width}")
    values = np.zeros(runs.size, dtype=np.bool_)
    values[1::2] = True
    return np.repeat(values, runs).reshape(width, height).T.copy()


def union(rles: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> RLE:
    """Unites masks; overlap stays foreground, it is not added.

    Args:
        rles: Any number of RLEs of the same size; none gives an empty mask.
        size: (height, width).

    Raises:
        DataError: an RLE is broken or of another size.
    """
    if len(rles) == 1 and isinstance(rles[0].get("counts"), str) and size_of(rles[0]) == size:
        decode(rles[0])
        return {"size": list(size), "counts": rles[0]["counts"]}
    together: Mask = np.zeros(size, dtype=np.bool_)
    for rle in rles:
        if size_of(rle) != size:
            raise DataError(f"RLE is of size {size_of(rle)} where the frame is {size}")
        together |= decode(rle)
    return encode(together)


def empty(height: int, width: int) -> RLE:
    """An RLE without foreground."""
    return encode(np.zeros((height, width), dtype=np.uint8))


def size_of(rle: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of an RLE.

    Raises:
        DataError: it is not an RLE, or its size is not two positive integers.
    """
    size = rle.get("size") if isinstance(rle, Mapping) else None
    if not (isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)):
        raise DataError(f"RLE without a valid size: {str(rle)[:60]!r}")
    return int(size[0]), int(size[1])


def _runs(rle: Mapping[str, Any]) -> NDArray[np.int64]:
    counts = rle.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        return _runs_of_string(counts)
    if not isinstance(counts, list) or not all(isinstance(run, int) and 0 <= run < 1 << 40 for run in counts):
        raise DataError(f"RLE counts must be a string or a list of run lengths, not {str(counts)[:40]!r}")
    return np.array(counts, dtype=np.int64)


def _runs_of_string(counts: str) -> NDArray[np.int64]:
    """Run lengths from COCO's string form.

    A character holds 5 bits from 48 up, the sixth bit says that more follow; from the fourth run on, the
    difference to the run two before is stored.

    Source: the format of cocoapi's ``maskApi.c`` (``rleFrString``).
    """
    try:
        bits = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        bits = np.array([-1])
    if bits.size == 0 or bits.min() < 0 or bits.max() > 63:
        raise DataError(f"RLE counts are empty or hold characters outside the format: {counts[:40]!r}")
    last = np.flatnonzero(bits < 32)
    if last.size == 0 or last[-1] != bits.size - 1:
        raise DataError(f"RLE counts end in the middle of a run: ...{counts[-20:]!r}")
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:
        raise DataError(f"RLE counts hold a run longer than any picture: {counts[:40]!r}")
    position = np.arange(bits.size) - np.repeat(first, lengths)
    runs = np.add.reduceat((bits & 31) << (5 * position), first)
    runs -= np.where(bits[last] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise DataError(f"RLE counts give a negative run length: {counts[:40]!r}")
    return runs
