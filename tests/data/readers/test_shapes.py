from __future__ import annotations

import numpy as np
import pytest

from salmacli.data import rle
from salmacli.data.readers.shapes import segmentation

SQUARE = np.zeros((10, 12), dtype=bool)
SQUARE[2:6, 3:9] = True
POLYGON = [3, 2, 9, 2, 9, 6, 3, 6]


@pytest.mark.parametrize(
    "value",
    [
        [POLYGON],
        [POLYGON, POLYGON],
        rle.encode(SQUARE),
        [rle.encode(SQUARE)],
        {"size": [10, 12], "counts": "list"},
    ],
)
def test_every_form_gives_the_same_mask_and_overlap_is_not_added(value):
    if isinstance(value, dict) and value["counts"] == "list":
        edges = np.flatnonzero(np.diff(np.concatenate([[0], SQUARE.T.ravel(), [0]])))
        value["counts"] = np.diff([0, *edges, SQUARE.size]).tolist()
    assert np.array_equal(rle.decode(segmentation(value, (10, 12), "here")), SQUARE)


def test_no_polygon_is_no_mask():
    assert not rle.decode(segmentation([], (10, 12), "here")).any()
