from __future__ import annotations

import numpy as np
import pytest

from salmacli.data.synthetic.render import render
from salmacli.data.synthetic.scene import FRAMES, HEIGHT, SHAPES, WIDTH, Scene, Thing, draw_scene


def thing(shape, x=80.5, y=60.5, radius=20.0, **more):
    centres, radii = np.tile([x, y], (FRAMES, 1)), np.full(FRAMES, radius)
    looks = {"colour": "red", "texture": "plain", "size": "big", "motion": "still", "event": "stays"}
    return Thing(shape=shape, vivid=1.0, angle=0.0, centres=centres, radii=radii, **looks | more)


# Areas of the figures as they are defined, in units of the squared radius.
AREAS = {"circle": np.pi, "ring": 0.75 * np.pi, "square": 1.72**2, "cross": 4 * 0.68 - 0.68**2}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_is_where_the_thing_is(shape):
    mask = render(Scene((thing(shape),), 0)).masks[0, 0]
    rows, columns = np.nonzero(mask)
    assert abs(columns.mean() - 80) < 0.6
    assert np.abs(np.stack([rows - 60, columns - 80])).max() <= 24
    if shape in AREAS:
        assert mask.sum() == pytest.approx(AREAS[shape] * 400, rel=0.05)


def test_the_front_hides_the_back_and_no_pixel_has_two_owners():
    masks = render(Scene((thing("circle"), thing("square", x=90.5)), 0)).masks
    alone = render(Scene((thing("square", x=90.5),), 0)).masks[0]
    assert np.array_equal(masks[1], alone)
    assert not (masks[0] & masks[1]).any()
    for index in range(6):
        crowd = render(draw_scene(np.random.default_rng(index), held_out=False)).masks
        assert crowd.sum(axis=0).max() <= 1


def test_frames_show_the_colour_under_the_mask():
    drawn = render(Scene((thing("circle"),), 0))
    assert drawn.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    inside, outside = (
        drawn.frames[0][drawn.masks[0, 0]].mean(axis=0),
        drawn.frames[0][~drawn.masks[0, 0]].mean(axis=0),
    )
    assert inside[0] - inside[1] > 120
    assert np.ptp(outside) < 60


def test_outside_the_picture_there_is_nothing():
    drawn = render(Scene((thing("star", x=-40.0), thing("ring", y=200.0)), 0))
    assert not drawn.masks.any()


@pytest.mark.parametrize("index", range(25))
def test_scenes_keep_their_promises(index):
    scene = draw_scene(np.random.default_rng([1, index]), held_out=bool(index % 2))
    assert 2 <= len(scene.things) <= 6
    whole = [render(Scene((thing,), 0)).masks[0].sum(axis=(1, 2)) for thing in scene.things]
    seen = render(scene).masks.sum(axis=(2, 3))
    for thing_, alone, visible in zip(scene.things, whole, seen, strict=True):
        assert 22 <= 2 * thing_.radii.max() <= 52
        assert visible.sum() > 0.35 * alone.sum()  # occlusion stays moderate
        step = thing_.centres[-1] - thing_.centres[0]
        if thing_.motion in ("left", "right", "up", "down"):
            assert np.abs(step).max() >= 40
        if thing_.motion == "growing":
            assert thing_.radii[-1] >= 1.6 * thing_.radii[0]
        assert (alone[0] == 0) == (thing_.event == "enters")
        assert (alone[-1] == 0) == (thing_.event == "leaves")
