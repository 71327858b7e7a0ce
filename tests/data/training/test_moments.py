from __future__ import annotations

import numpy as np
import pytest

from salmacli.data.training.moments import evenly, nearly_evenly, one_per_segment, to_segment

DRAWS = range(50)


def test_evenly_covers_both_ends_and_repeats_in_short_videos():
    assert evenly(12, 4).tolist() == [0, 4, 7, 11]
    assert evenly(2, 4).tolist() == [0, 0, 1, 1]
    assert evenly(1, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("total", "count"), [(12, 4), (5, 5), (1, 3), (100, 1)])
def test_frames_that_are_shown_stay_near_those_of_prediction_and_in_order(total, count):
    step = (total - 1) / max(count - 1, 1)
    drawn = [nearly_evenly(np.random.default_rng(seed), total, count) for seed in DRAWS]
    for frames in drawn:
        assert frames.tolist() == sorted(frames) and 0 <= frames.min() <= frames.max() < total
        assert np.abs(frames - np.linspace(0, total - 1, count)).max() <= step / 2 + 0.5
    assert total <= count or len({tuple(frames) for frames in drawn}) > 1


def test_one_frame_comes_out_of_every_segment():
    for seed in DRAWS:
        frames = one_per_segment(np.random.default_rng(seed), 23, 5)
        borders = np.linspace(0, 23, 6).astype(int)
        assert ((frames >= borders[:-1]) & (frames < borders[1:])).all()
    assert one_per_segment(np.random.default_rng(0), 3, 5).tolist() == [0, 1, 2]


def test_frames_to_segment_are_different_and_in_order_or_follow_each_other():
    seen = set()
    for seed in DRAWS:
        rng = np.random.default_rng(seed)
        anywhere = to_segment(rng, 9, 4, "random")
        assert len(set(anywhere)) == 4 and anywhere.tolist() == sorted(anywhere)
        row = to_segment(rng, 9, 4, "consecutive")
        assert np.diff(row).tolist() == [1, 1, 1] and row[0] >= 0 and row[-1] < 9
        seen.add(int(row[0]))
    assert seen == set(range(6)), "every place is drawn"
    assert to_segment(rng, 2, 4, "random").tolist() == to_segment(rng, 2, 4, "consecutive").tolist() == [0, 1]
