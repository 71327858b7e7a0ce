from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from salmacli.data import rle
from salmacli.errors import DataError

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@settings(max_examples=60, deadline=None)
@given(masks)
def test_what_is_encoded_comes_back_and_pycocotools_agrees(mask):
    encoded = rle.encode(mask)
    assert np.array_equal(rle.decode(encoded), mask)
    assert np.array_equal(coco.decode(encoded), mask)
    assert encoded["size"] == list(mask.shape)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_large_sparse_masks_have_runs_of_several_characters(seed):
    mask = np.zeros((480, 854), dtype=bool)
    top, left, height, width = np.random.default_rng(seed).integers(1, 400, 4)
    mask[top : top + height, left : left + width] = True
    assert np.array_equal(rle.decode(rle.encode(mask)), mask)


def test_plain_run_lengths_are_read():
    assert np.array_equal(rle.decode({"size": [2, 3], "counts": [1, 2, 3]}), [[0, 1, 0], [1, 0, 0]])


def test_union_keeps_overlap_and_accepts_nothing():
    first, second = np.zeros((2, 6, 8), dtype=bool)
    first, second = first.copy(), second.copy()
    first[1:4, 1:4] = second[2:5, 2:6] = True
    united = rle.union([rle.encode(first), rle.encode(second)], (6, 8))
    assert np.array_equal(rle.decode(united), first | second)
    assert not rle.decode(rle.union([], (6, 8))).any()
    assert rle.decode(rle.empty(6, 8)).shape == (6, 8)


@pytest.mark.parametrize(
    "broken",
    [
        {"size": [4, 4], "counts": [1, 2, 3]},
        {"size": [4, 4], "counts": [20]},
        {"size": [4, 4], "counts": [8, -1, 9]},
        {"size": [4], "counts": [4]},
        {"size": [0, 4], "counts": []},
        {"size": ["4", 4], "counts": [16]},
        {"counts": [16]},
        {"size": [4, 4]},
        {"size": [4, 4], "counts": ""},
        {"size": [4, 4], "counts": "P"},
        {"size": [4, 4], "counts": "\x7f\x7f"},
        {"size": [4, 4], "counts": "ä"},
        {"size": [4, 4], "counts": "oooooooooooo0"},
        {"size": [4, 4], "counts": None},
        {"size": [1 << 20, 1 << 20], "counts": [1 << 40]},
        {"size": [4, 4], "counts": "o" * 5 + "?" + ("0" * 6 + "1") * 3},
    ],
)
def test_broken_rle_is_refused_in_one_line(broken):
    with pytest.raises(DataError) as caught:
        rle.decode(broken)
    assert "\n" not in str(caught.value)


def test_union_refuses_another_size_even_with_as_many_pixels():
    with pytest.raises(DataError, match=r"\(3, 8\)"):
        rle.union([rle.encode(np.ones((3, 8)))], (4, 6))
