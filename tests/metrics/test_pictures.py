"""Picture scores on counts small enough to do by hand."""

from __future__ import annotations

import numpy as np
import pytest

from salmacli.metrics.pictures import cumulative_iou, precision_at


def test_large_objects_weigh_more_in_the_cumulative_iou():
    assert cumulative_iou(np.array([1, 90]), np.array([10, 100])) == pytest.approx(91 / 110)


def test_sums_beyond_32_bits_are_exact():
    many = np.full(2**20, 2**24 + 1, dtype=np.int64)
    assert cumulative_iou(many - 1, many) == (2**44) / (2**44 + 2**20)


def test_nothing_predicted_where_nothing_is():
    nothing = np.zeros(3, dtype=np.int64)
    assert cumulative_iou(nothing, nothing) == 1.0


def test_a_threshold_that_is_just_reached_counts():
    iou = np.array([5 / 10, 7 / 10, 9 / 10, 0.0])
    assert precision_at(iou) == {"P@0.5": 0.75, "P@0.6": 0.5, "P@0.7": 0.5, "P@0.8": 0.25, "P@0.9": 0.25}
