"""A and R on masks small enough to count by hand, and the 8-bit arithmetic of the official script."""

from __future__ import annotations

import numpy as np
import pytest

from salmacli.metrics.counts import count
from salmacli.metrics.revos import added_up, eight_bit_counts, pixel_accuracy, robustness


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
    outside, foreground = np.array([10, 0, 10, 0]), np.array([40, 40, 0, 0])
    assert robustness(outside, foreground) == pytest.approx([1 - 10 / 40, 1, 0, 1])


def test_objects_add_up_and_wrap_around():
    one = np.ones((2, 3), dtype=bool)
    assert (added_up([one] * 258, (2, 3)) == 2).all()
    assert added_up([], (2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("value", [255, 1])
def test_eight_bits_are_those_of_plain_uint8_arrays(value):
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = (rng.random((5, 30, 40)) < 0.4).astype(np.uint8).sum(axis=0, dtype=np.uint8)
        truth[0, :3] = (255, 254, 128)
        prediction = rng.random((30, 40)) < 0.5
        picture = np.where(prediction, value, 0).astype(np.uint8)
        product = (1 - truth) * picture
        assert product.dtype == np.uint8
        expected = (int((truth == picture).sum()), int(product.sum()))
        assert eight_bit_counts(prediction, truth, value) == expected


def test_eight_bits_by_hand():
    truth = np.array([[0, 0, 1, 1, 2, 2]], dtype=np.uint8)
    prediction = np.array([[0, 1, 0, 1, 0, 1]], dtype=bool)
    # As 0/1: equal at the first and fourth; outside 1 at the second, 255 at the last.
    assert eight_bit_counts(prediction, truth, 1) == (2, 1 + 255)
    # As 0/255: equal only at the first; -1 and +1 modulo 256 at the second and last.
    assert eight_bit_counts(prediction, truth, 255) == (1, 255 + 1)
