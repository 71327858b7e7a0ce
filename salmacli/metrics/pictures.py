"""What is reported of single pictures: cIoU, gIoU and P@, from whole numbers of pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def cumulative_iou(intersection: NDArray[np.int64], union: NDArray[np.int64]) -> float:
    """cIoU: all intersections over all unions, so that large objects weigh more; 1 where nothing is anywhere.

    Args:
        intersection: (samples,) pixels.
        union: (samples,) pixels.
    """
    total = int(union.sum(dtype=np.int64))
    return int(intersection.sum(dtype=np.int64)) / total if total else 1.0


def precision_at(iou: NDArray[np.float64], thresholds: tuple[float, ...] = THRESHOLDS) -> dict[str, float]:
    """P@0.5 and so on: the share of samples whose IoU reaches a threshold.

    Args:
        iou: (samples,) at least one.
        thresholds: The IoU itself counts as reached.
    """
    return {f"P@{threshold}": float(np.mean(iou >= threshold)) for threshold in thresholds}
