from __future__ import annotations

import numpy as np
import pytest

from salmacli.data.tiles import bicubic, shown_of, tiles


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (100, 100, (1, 1)),
        (448, 448, (1, 1)),
        (640, 640, (2, 2)),  # more than half of 2 × 2 tiles' pixels
        (2000, 2000, (3, 3)),
        (80, 120, (2, 3)),
        (1080, 1920, (4, 2)[::-1]),
        (30, 400, (1, 12)),
        (400, 30, (12, 1)),
    ],
)
def test_a_picture_is_cut_into_the_grid_of_its_shape(height, width, grid):
    rows, columns = grid
    cut = tiles(np.zeros((height, width, 3), np.uint8), 448)
    assert len(cut) == rows * columns + (rows * columns > 1)
    assert all(tile.shape == (448, 448, 3) for tile in cut)


def test_tiles_are_the_picture_row_by_row_and_then_the_whole_of_it():
    random = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    cut = tiles(random, 32)
    assert len(cut) == 7
    rows = [np.concatenate(cut[:3], axis=1), np.concatenate(cut[3:6], axis=1)]
    assert np.array_equal(np.concatenate(rows), random), "a picture that fits its grid is only cut"
    assert np.array_equal(cut[-1], bicubic(random, 32, 32))


def test_one_tile_is_the_picture_as_it_is():
    picture = np.zeros((64, 96, 3), np.uint8)
    (shown,) = shown_of(picture, 32, 1)
    assert shown is picture
    assert len(shown_of(picture, 32, 6)) == 7
