"""A and R on masks small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from salmacli.metrics.counts import count
from salmacli.metrics.revos import pixel_accuracy, robustness


def boxes():
    truth, prediction, foreground = np.zeros((3, 10, 10), dtype=bool)
    truth[0:4, 0:5] = True
    prediction[2:6, 0:5] = True
    foreground[0:4, 0:10] = True
    return prediction, truth, foreground


def test_accuracy_counts_agreement_everywhere():
    prediction, truth, _ = boxes()
    assert pixel_accuracy(count(prediction, truth), 100) == pytest.approx(0.8)


def test_robustness_by_hand():
    prediction, truth, foreground = boxes()
    assert robustness(prediction, truth, foreground) == pytest.approx(1 - 10 / 40)
    assert robustness(truth, truth, foreground) == 1.0


def test_robustness_stays_at_zero():
    prediction, truth, _ = boxes()
    nothing = np.zeros_like(truth)
    assert robustness(prediction, truth, nothing) == 0.0
    assert robustness(nothing, truth, nothing) == 1.0
