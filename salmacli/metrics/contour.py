"""F: contour accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from salmacli.metrics.counts import (
    PREDICTION_BOUNDARY,
    PREDICTION_MATCHED,
    TRUTH_BOUNDARY,
    TRUTH_MATCHED,
    Counts,
)


def contour_accuracy(counts: Counts) -> NDArray[np.float64]:
    """Harmonic mean of boundary precision and recall.

    Emptiness is judged by the boundaries, not by the masks: no boundary in either gives 1, in one gives 0. A
    full frame has no boundary, so against an empty mask it has F = 1 (and J = 0).

    Args:
        counts: (..., 6) from :mod:`salmacli.metrics.counts`.

    Returns:
        (...) float64 in 0..1.

    Source: F of DAVIS (Perazzi et al., CVPR 2016).
    """
    in_truth, in_prediction = counts[..., TRUTH_BOUNDARY], counts[..., PREDICTION_BOUNDARY]
    precision = counts[..., PREDICTION_MATCHED] / np.maximum(in_prediction, 1)
    recall = counts[..., TRUTH_MATCHED] / np.maximum(in_truth, 1)
    total = precision + recall
    accuracy = 2 * precision * recall / np.where(total == 0, 1.0, total)
    return np.where((in_truth == 0) & (in_prediction == 0), 1.0, accuracy)
