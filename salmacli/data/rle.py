"""Masks as COCO run-length encoding: ``{"size": [height, width], "counts": str}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from salmacli.errors import DataError
from salmacli.metrics import kernels
from salmacli.metrics.bits import Bits

RLE = dict[str, Any]
Mask = NDArray[np.bool_]

MOST_PIXELS = 1 << 30

_FAULTS = {
    kernels.BAD_CHARACTER: "are empty or hold characters outside the format",
    kernels.CUT_OFF: "end in the middle of a run",
    kernels.TOO_LONG: "hold a run longer than any picture",
    kernels.NEGATIVE: "give a negative run length",
}


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
    return bits(rle).to_mask()


def bits(rle: Mapping[str, Any]) -> Bits:
    """The mask of an RLE as a stream of bits, without making a picture of it.

    Raises:
        DataError: as :func:`decode`.
    """
    height, width = size_of(rle)
    try:
        # pycocotools trusts the runs and writes past its array when they are too long, so it never sees them.
        return Bits.of_runs(_runs(rle), height, width)
    except ValueError as error:
        raise DataError(str(error)) from None


def union(rles: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> RLE:
    """Unites masks; overlap stays foreground, it is not added.

    Args:
        rles: Any number of RLEs of the same size; none gives an empty mask.
        size: (height, width).

    Raises:
        DataError: an RLE is broken or of another size.
    """
    if len(rles) == 1 and isinstance(rles[0].get("counts"), str) and size_of(rles[0]) == size:
        bits(rles[0])
        return {"size": list(size), "counts": rles[0]["counts"]}
    together = Bits.empty(*size, by_columns=True)
    for rle in rles:
        if size_of(rle) != size:
            raise DataError(f"RLE is of size {size_of(rle)} where the frame is {size}")
        together |= bits(rle)
    return encode(together.to_mask())


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
    if size[0] * size[1] > MOST_PIXELS:
        raise DataError(f"RLE of {size[0]}x{size[1]} pixels, more than any picture has")
    return int(size[0]), int(size[1])


def _runs(rle: Mapping[str, Any]) -> NDArray[np.int64]:
    counts = rle.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        # What is not ASCII becomes bytes that the format does not have.
        text = np.frombuffer(counts.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        runs: NDArray[np.int64]
        fault, runs = kernels.runs_of_text(text)
        if fault != kernels.FINE:
            raise DataError(f"RLE counts {_FAULTS[fault]}: {counts[:40]!r}")
        return runs
    if not isinstance(counts, list) or not all(isinstance(run, int) and 0 <= run < 1 << 40 for run in counts):
        raise DataError(f"RLE counts must be a string or a list of run lengths, not {str(counts)[:40]!r}")
    return np.array(counts, dtype=np.int64)
