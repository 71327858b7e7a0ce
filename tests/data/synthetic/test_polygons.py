from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given, settings
from pycocotools import mask as coco

from salmacli.data.synthetic.polygons import outline

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))


@settings(max_examples=150, deadline=None)
@given(masks)
def test_polygons_give_the_mask_back(mask):
    polygons = outline(mask)
    if not mask.any():
        assert polygons == []
        return
    merged = coco.merge(coco.frPyObjects(polygons, *mask.shape))
    assert np.array_equal(coco.decode(merged), mask)


def test_a_disk_is_one_polygon_and_a_ring_is_four():
    y, x = np.mgrid[:40, :40] - 19.5
    disk = np.hypot(x, y) < 15
    assert len(outline(disk)) == 1
    assert len(outline(disk & (np.hypot(x, y) > 8))) == 4
