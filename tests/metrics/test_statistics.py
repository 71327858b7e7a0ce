"""Mean, recall and decay, also where the official script fails."""

from __future__ import annotations

import numpy as np
import pytest

from salmacli.metrics.statistics import summarise


def test_quarters_of_a_short_video():
    mean, recall, decay = summarise(np.array([1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0]))
    assert mean == pytest.approx(0.475)
    assert recall == 3 / 8  # 0.5 itself is not above 0.5
    # 1 + 7 * i / 4 = 1, 2.75, 4.5, 6.25, 8 rounds to frames 1, 3, 5, 6, 8: frames 1..3 against 6..8
    assert decay == pytest.approx((1.0 + 0.8 + 0.6) / 3 - (0.3 + 0.2 + 0.0) / 3)


def test_decay_beyond_256_frames():
    values = np.linspace(1, 0, 1001)
    assert summarise(values).decay == pytest.approx(values[:251].mean() - values[750:].mean())


def test_one_frame_does_not_decay():
    assert summarise(np.array([0.7])) == (0.7, 1.0, 0.0)


def test_no_frame_has_no_statistics():
    with pytest.raises(ValueError, match="at least one frame"):
        summarise(np.zeros(0))
