"""Small files in the layouts of the public sets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from salmacli.data import rle


@pytest.fixture
def put(tmp_path):
    """Writes a picture of a size (height, width), or JSON, below the test's folder."""

    def put(place, content):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            Image.fromarray(np.zeros((*content, 3), dtype=np.uint8)).save(path)
        else:
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return path

    return put


@pytest.fixture
def square():
    """A mask with one square in it, in each way in which sets write masks."""

    def square(kind, size=(24, 32), at=(4, 6), side=8):
        top, left = at
        mask = np.zeros(size, dtype=bool)
        mask[top : top + side, left : left + side] = True
        if kind == "mask":
            return mask
        if kind == "polygons":
            # Two that overlap: united they are the square.
            right, bottom, middle = left + side, top + side, left + side // 2
            return [
                [left, top, middle + 1, top, middle + 1, bottom, left, bottom],
                [middle, top, right, top, right, bottom, middle, bottom],
            ]
        encoded = rle.encode(mask)
        if kind == "compressed":
            return encoded
        edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False, append=False))
        runs = np.diff(np.concatenate([[0], edges, [mask.size]]))
        return {"size": list(size), "counts": runs.tolist()}

    return square
