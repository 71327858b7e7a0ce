"""Segmentations as picture sets write them: polygons or RLE, detected per object."""

from __future__ import annotations

from typing import Any

from pycocotools import mask as coco

from salmacli.data import rle
from salmacli.data.readers import checks
from salmacli.errors import DataError


def segmentation(value: Any, size: tuple[int, int], where: str) -> rle.RLE:
    """One object's mask; overlapping polygons are united.

    Args:
        value: ``[[x1, y1, ...], ...]``, or an RLE with string or list counts, or a list of such RLEs.
        size: (height, width) of the picture.
        where: File and key, for messages.

    Raises:
        DataError: It is none of these, or of another size.
    """
    encoded = value if isinstance(value, list) else [value]
    if encoded and all(isinstance(one, dict) for one in encoded):
        try:
            return rle.union(encoded, size)
        except DataError as error:
            raise DataError(f"{where}: {error}", checks.MEND) from None
    polygons = [_polygon(polygon, where) for polygon in checks.listing(value, where)]
    if not polygons:
        return rle.empty(*size)
    merged = coco.merge(coco.frPyObjects(polygons, *size))
    return {"size": list(size), "counts": merged["counts"].decode("ascii")}


def _polygon(value: Any, where: str) -> list[float]:
    numbers = checks.listing(value, where)
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) < 1e6 for n in numbers):
        raise DataError(f"{where}: a polygon holds something that is no coordinate", checks.MEND)
    if len(numbers) < 6 or len(numbers) % 2:
        raise DataError(f"{where}: a polygon of {len(numbers)} numbers is not a polygon", checks.MEND)
    return [float(n) for n in numbers]
