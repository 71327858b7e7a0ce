"""Mean, recall and decay of a score over the frames of one object."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Statistics(NamedTuple):
    """What DAVIS reports of one object.

    Attributes:
        mean: Mean over frames.
        recall: Share of frames that score above 0.5.
        decay: Mean of the first quarter of the frames minus mean of the last.
    """

    mean: float
    recall: float
    decay: float


def summarise(values: NDArray[np.float64]) -> Statistics:
    """Statistics of a score per frame, in temporal order.

    The quarters share their end frames as in the official script. That script keeps frame numbers in 8 bits
    and gives NaN from 256 frames on; here the decay of such videos is right.

    Args:
        values: (frames,) scores.

    Raises:
        ValueError: There is no frame, or there is more than one axis.

    Source: davis2017-evaluation, ``db_statistics``.
    """
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"statistics need the scores of at least one frame, not an array of shape {values.shape}")
    # The tiny addend makes halves round up, where NumPy alone would round them to even.
    ends = np.round(np.linspace(1, values.size, 5) + 1e-10).astype(np.int64) - 1
    first, last = values[ends[0] : ends[1] + 1], values[ends[3] : ends[4] + 1]
    return Statistics(
        mean=float(values.mean()),
        recall=float((values > 0.5).mean()),
        decay=float(first.mean() - last.mean()),
    )
