"""J: region similarity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from salmacli.metrics.counts import INTERSECTION, UNION, Counts


def region_similarity(counts: Counts) -> NDArray[np.float64]:
    """Intersection over union; 1 where both masks are empty.

    Args:
        counts: (..., 6) from :mod:`salmacli.metrics.counts`.

    Returns:
        (...) float64 in 0..1.

    Source: J of DAVIS (Perazzi et al., CVPR 2016).
    """
    intersection, union = counts[..., INTERSECTION], counts[..., UNION]
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))
