"""The six counts against a dilation written the slow, obvious way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from salmacli.metrics.bits import Bits
from salmacli.metrics.contour import contour_accuracy
from salmacli.metrics.counts import boundary_radius, count, count_frames, count_labels, trace
from salmacli.metrics.region import region_similarity

pytestmark = pytest.mark.usefixtures("each_kernel")


def naive_boundary(mask):
    height, width = mask.shape
    edge = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            neighbours = []
            if x + 1 < width:
                neighbours.append((y, x + 1))
            if y + 1 < height:
                neighbours.append((y + 1, x))
            if x + 1 < width and y + 1 < height:
                neighbours.append((y + 1, x + 1))
            edge[y, x] = any(mask[y, x] != mask[n] for n in neighbours)
    return edge


def naive_counts(prediction, truth, radius):
    of_truth, of_prediction = np.argwhere(naive_boundary(truth)), np.argwhere(naive_boundary(prediction))
    apart = ((of_truth[:, None, :] - of_prediction[None, :, :]) ** 2).sum(axis=2)
    near = apart <= radius**2
    return [
        (prediction & truth).sum(),
        (prediction | truth).sum(),
        len(of_truth),
        len(of_prediction),
        near.any(axis=1).sum(),
        near.any(axis=0).sum(),
    ]


def shape(kind, rng, height, width):
    mask = np.zeros((height, width), dtype=bool)
    y, x = rng.integers(height), rng.integers(width)
    if kind == "full":
        mask[:] = True
    elif kind == "noise":
        mask = rng.random((height, width)) < rng.random()
    elif kind == "row":
        mask[y] = True
    elif kind == "column":
        mask[:, x] = True
    elif kind == "last row":
        mask[-1] = True
    elif kind == "last column":
        mask[:, -1] = True
    elif kind == "corner":
        mask[-1, -1] = True
    elif kind == "pixel":
        mask[y, x] = True
    elif kind == "box":
        mask[y : y + 1 + rng.integers(height), x : x + 1 + rng.integers(width)] = True
    elif kind == "disk":
        rows, columns = np.ogrid[:height, :width]
        mask = (rows - y) ** 2 + (columns - x) ** 2 <= rng.integers(1, 15) ** 2
    elif kind == "frame":
        mask[:] = True
        mask[1:-1, 1:-1] = False
    return mask


KINDS = [
    "empty",
    "full",
    "noise",
    "row",
    "column",
    "last row",
    "last column",
    "corner",
    "pixel",
    "box",
    "disk",
    "frame",
]


@pytest.mark.parametrize("truth_kind", KINDS)
@pytest.mark.parametrize("prediction_kind", KINDS)
def test_counts_of_odd_shapes_are_the_naive_ones(prediction_kind, truth_kind):
    rng = np.random.default_rng(KINDS.index(prediction_kind) * 100 + KINDS.index(truth_kind))
    for radius in (1, 2, 3, 8, 17, 33, 40):
        height, width = rng.integers(1, 26, size=2)
        prediction = shape(prediction_kind, rng, height, width)
        truth = shape(truth_kind, rng, height, width)
        assert count(prediction, truth, radius).tolist() == naive_counts(prediction, truth, radius)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 14), st.integers(1, 14), st.integers(0, 40))
def test_counts_of_any_masks_are_the_naive_ones(data, height, width, radius):
    prediction = data.draw(arrays(bool, (height, width)))
    truth = data.draw(arrays(bool, (height, width)))
    assert count(prediction, truth, radius).tolist() == naive_counts(prediction, truth, radius)


def test_every_radius_with_two_far_shapes():
    rng = np.random.default_rng(5)
    for radius in range(1, 41):
        prediction, truth = shape("box", rng, 40, 60), shape("disk", rng, 40, 60)
        assert count(prediction, truth, radius).tolist() == naive_counts(prediction, truth, radius)


def test_the_tolerance_is_a_closed_disk():
    truth, prediction = np.zeros((2, 30, 30), dtype=bool)
    truth[10, 10], prediction[13, 14] = (
        True,
        True,
    )  # four boundary pixels each, (3, 4) apart: 5
    assert count(prediction, truth, 5)[4:].tolist() == naive_counts(prediction, truth, 5)[4:]
    assert count(prediction, truth, 5)[4] == 4
    assert count(prediction, truth, 4)[4] < 4


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_a_large_disk_at_the_edges_of_a_high_picture(turned):
    for row, column in ((0, 0), (119, 0), (0, 69), (119, 69), (60, 0), (60, 69), (0, 30)):
        prediction, truth = np.zeros((120, 70), dtype=bool), np.ones((120, 70), dtype=bool)
        prediction[row, column] = True
        truth[::2, ::2] = False
        prediction, truth = (prediction.T, truth.T) if turned else (prediction, truth)
        for radius in (17, 33, 36, 40, 66):
            assert count(prediction, truth, radius).tolist() == naive_counts(prediction, truth, radius)


@pytest.mark.parametrize("width", [63, 64, 65, 127, 128, 129, 200])
def test_words_end_anywhere(width):
    rng = np.random.default_rng(width)
    for kind in KINDS:
        for radius in (1, 5, 40, 70):
            prediction, truth = shape(kind, rng, 9, width), shape("box", rng, 9, width)
            assert count(prediction, truth, radius).tolist() == naive_counts(prediction, truth, radius), (kind, radius)


def test_arrays_bits_runs_and_traced_masks_count_the_same():
    rng = np.random.default_rng(3)
    for height, width in ((1, 1), (7, 130), (65, 64), (40, 50)):
        prediction, truth = shape("disk", rng, height, width), shape("noise", rng, height, width)
        known = naive_counts(prediction, truth, 3)
        forms = [
            [mask, Bits.of_mask(mask), Bits.of_mask(mask, by_columns=True), trace(Bits.of_mask(mask), 3)]
            for mask in (prediction, truth)
        ]
        for one in forms[0]:
            for other in forms[1]:
                assert count(one, other, 3).tolist() == known


@pytest.mark.parametrize("width", [1, 7, 8, 64, 70, 129])
def test_objects_of_pictures_count_as_their_masks(width):
    rng = np.random.default_rng(width)
    wide = rng.integers(0, 4, size=(2, 21, width + 1), dtype=np.uint8)
    wide[1, 5:15] = 2
    for pictures in (
        wide[:, :, 1:],
        np.ascontiguousarray(wide[:, :, 1:]),
        np.asfortranarray(wide[0, :, 1:])[None][[0, 0]],
    ):
        prediction, truth = pictures
        counted = count_labels(prediction, truth, 5)
        assert counted.tolist() == [count(prediction == n, truth == n).tolist() for n in range(1, 6)]
    assert count_labels(prediction, truth, 0).shape == (0, 6)


def test_pictures_that_cannot_be_compared():
    picture = np.zeros((4, 5), dtype=np.uint8)
    with pytest.raises(ValueError, match="share"):
        count_labels(picture, picture.T, 1)
    with pytest.raises(ValueError, match="8 bits"):
        count_labels(picture.astype(np.int64), picture, 1)
    with pytest.raises(ValueError, match="255"):
        count_labels(picture, picture, 256)
    with pytest.raises(ValueError, match="negative"):
        count_labels(picture, picture, 1, radius=-1)
    with pytest.raises(ValueError, match="255"):
        Bits.of_label(picture, 256)


def test_traced_masks_of_other_radii_or_orders_do_not_meet():
    mask = np.ones((5, 6), dtype=bool)
    with pytest.raises(ValueError, match="must share"):
        count(trace(mask, 1), trace(mask, 2))
    with pytest.raises(ValueError, match="must share"):
        count(trace(mask, 1), trace(mask, 1), radius=2)
    assert count(trace(mask, 3), mask).tolist() == count(mask, mask, 3).tolist()
    with pytest.raises(ValueError, match="must share"):
        count(trace(mask, 1), trace(Bits.of_mask(mask, by_columns=True), 1))


def test_radius_of_known_frames():
    assert boundary_radius(480, 854) == 8
    assert boundary_radius(120, 160) == 2
    assert boundary_radius(2160, 3840) == 36
    assert boundary_radius(1, 1) == 1


def test_default_radius_is_of_the_frame_not_of_the_crop():
    truth, prediction = np.zeros((2, 480, 854), dtype=bool)
    truth[100:140, 100:140] = True
    prediction[100:140, 108:148] = True
    assert count(prediction, truth).tolist() == count(prediction, truth, 8).tolist()
    assert count(prediction, truth).tolist() != count(prediction, truth, 7).tolist()


def test_emptiness_is_judged_by_boundaries():
    empty, full = np.zeros((20, 30), dtype=bool), np.ones((20, 30), dtype=bool)
    box = empty.copy()
    box[5:9, 5:9] = True
    scores = {}
    for name, prediction, truth in (
        ("both empty", empty, empty),
        ("full against empty", full, empty),
        ("box against empty", box, empty),
        ("empty against box", empty, box),
        ("same", box, box),
    ):
        counts = count(prediction, truth)
        scores[name] = (float(region_similarity(counts)), float(contour_accuracy(counts)))
    assert scores == {
        "both empty": (1.0, 1.0),
        "full against empty": (0.0, 1.0),
        "box against empty": (0.0, 0.0),
        "empty against box": (0.0, 0.0),
        "same": (1.0, 1.0),
    }


def test_scores_of_known_counts():
    counts = np.array([[6, 8, 10, 5, 5, 4], [0, 9, 7, 7, 0, 0]], dtype=np.int64)
    assert region_similarity(counts).tolist() == [0.75, 0.0]
    assert contour_accuracy(counts) == pytest.approx([2 * 0.8 * 0.5 / 1.3, 0.0], abs=1e-15)


def test_frames_stack_and_none_is_none():
    mask = np.ones((4, 4), dtype=bool)
    assert count_frames([(mask, mask)] * 3).shape == (3, 6)
    assert count_frames([]).shape == (0, 6)


@pytest.mark.parametrize(
    ("prediction", "truth", "radius"),
    [
        (np.zeros((3, 4), bool), np.zeros((4, 3), bool), 1),
        (np.zeros((3, 4), np.uint8), np.zeros((3, 4), bool), 1),
        (np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool), 1),
        (np.zeros((3, 4), bool), np.zeros((3, 4), bool), -1),
    ],
)
def test_masks_that_cannot_be_compared(prediction, truth, radius):
    with pytest.raises(ValueError, match="must"):
        count(prediction, truth, radius)
