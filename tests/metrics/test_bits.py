"""Streams of bits against arrays."""

from __future__ import annotations

import numpy as np
import pytest

from salmacli.data import rle
from salmacli.metrics.bits import Bits

pytestmark = pytest.mark.usefixtures("each_kernel")

SIZES = [(1, 1), (1, 64), (64, 1), (8, 8), (7, 9), (13, 65), (100, 129)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("by_columns", [False, True])
def test_there_and_back(size, by_columns):
    rng = np.random.default_rng(1)
    for mask in (rng.random(size) < 0.5, np.zeros(size, bool), np.ones(size, bool)):
        bits = Bits.of_mask(mask, by_columns)
        assert bits.shape == size
        assert bits.area() == mask.sum()
        assert np.array_equal(bits.to_mask(), mask)
        assert np.array_equal(bits.turned(not by_columns).to_mask(), mask)


@pytest.mark.parametrize("size", SIZES)
def test_runs_are_what_pycocotools_wrote(size):
    rng = np.random.default_rng(2)
    for mask in (rng.random(size) < 0.3, rng.random(size) < 0.97, np.zeros(size, bool), np.ones(size, bool)):
        encoded = rle.encode(mask)
        assert rle.bits(encoded).by_columns
        assert np.array_equal(rle.bits(encoded).to_mask(), mask)
        assert np.array_equal(rle.bits(encoded).words, Bits.of_mask(mask, by_columns=True).words)


@pytest.mark.parametrize("size", [*SIZES, (3, 5), (30, 200), (50, 3001)])
@pytest.mark.parametrize("most", [1, 3, 255])
def test_labels_of_a_picture(size, most):
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, most + 1, size=(size[0], size[1] // 9 + 1), dtype=np.uint8)
    for labels in (
        np.repeat(coarse, 9, axis=1)[:, : size[1]],  # runs, and an array that is not contiguous
        rng.integers(0, most + 1, size=size, dtype=np.uint8),
        np.full(size, most, dtype=np.uint8),
        np.zeros(size, dtype=np.uint8),
    ):
        for label in {1, most, int(labels[0, 0])}:
            assert np.array_equal(Bits.of_label(labels, label).words, Bits.of_mask(labels == label).words)


@pytest.mark.parametrize("turned", [False, True])
def test_sets(turned):
    rng = np.random.default_rng(4)
    one, other = rng.random((2, 30, 41)) < 0.5
    a, b = Bits.of_mask(one), Bits.of_mask(other, by_columns=turned)
    assert np.array_equal((a | b).to_mask(), one | other)
    assert np.array_equal((a & b).to_mask(), one & other)
    assert np.array_equal(a.without(b).to_mask(), one & ~other)
    assert not Bits.empty(3, 4).to_mask().any()


def test_what_is_no_mask_is_refused():
    with pytest.raises(ValueError, match="booleans"):
        Bits.of_mask(np.zeros((3, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="shape"):
        Bits.of_mask(np.zeros(3, dtype=bool))
    with pytest.raises(ValueError, match="share"):
        Bits.empty(3, 4) | Bits.empty(4, 3)
    with pytest.raises(ValueError, match="cover"):
        Bits.of_runs(np.array([3, 4]), 2, 4)


def test_runs_whose_sum_overflows_are_refused():
    runs = np.full(1 << 4, 1 << 60, dtype=np.int64)  # 2 to the 64, which is 0
    runs = np.concatenate([runs, np.array([12])])
    assert int(runs.sum()) == 12
    with pytest.raises(ValueError, match="cover"):
        Bits.of_runs(runs, 3, 4)
