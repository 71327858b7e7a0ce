"""Windows cover a video, and their masks fade into each other."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from salmacli.engine.prediction.windows import NOTHING, Fade, FrameMasks, Window, windows


@pytest.mark.parametrize("total", [1, 2, 9, 10, 11, 64, 99, 2000])
@pytest.mark.parametrize(("length", "overlap"), [(10, 0), (10, 3), (10, 9), (64, 8), (2, 1)])
def test_windows_cover_all_and_share_what_is_asked(total, length, overlap):
    plan = windows(total, length, overlap)
    assert plan[0].start == 0 and plan[-1].stop == total
    for one, after in pairwise(plan):
        assert one.stop - after.start == overlap
    assert all(0 < len(window) <= length for window in plan)
    assert max(map(len, plan)) - min(map(len, plan)) <= 1, "no stub at the end"
    assert windows(total, None, overlap) == [Window(0, total)]


def masks(value: float, known: bool = True, empty: bool = False, filled: bool = False) -> FrameMasks:
    flags = (torch.tensor([flag]) for flag in (empty, filled, known))
    return FrameMasks(torch.full((1, 2, 2), value if known else NOTHING), *flags)


def faded(plan: list[Window], *values: float | None) -> dict[int, float]:
    """Each window says one value in all its frames, or nothing."""
    fade, found = Fade(plan), {}
    for index, (window, value) in enumerate(zip(plan, values, strict=True)):
        for number in reversed(window.numbers()):  # in any order
            for finished, merged in fade.add(index, number, masks(value or 0.0, known=value is not None)):
                assert finished not in found
                found[finished] = float(merged.logits[0, 0, 0])
    assert not fade.sums, "nothing stays"
    return found


def logit(share: float) -> float:
    return float(torch.logit(torch.tensor(share)))


def test_masks_fade_from_one_window_to_the_next():
    found = faded([Window(0, 6), Window(3, 9)], logit(0.1), logit(0.9))
    shares = torch.tensor([found[n] for n in range(9)]).sigmoid().tolist()
    assert shares == pytest.approx([0.1, 0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9, 0.9], abs=1e-5)


def test_more_than_two_windows_may_share_a_frame():
    found = faded([Window(0, 5), Window(2, 7), Window(4, 9)], logit(0.1), logit(0.2), logit(0.8))
    assert found[4] == pytest.approx(logit((1 * 0.1 + 3 * 0.2 + 1 * 0.8) / 5), abs=1e-4)


def test_absence_has_no_more_weight_than_presence():
    """SAM 2 says −1024 where the object is not; a mask must still fade out at half of the way, not at its beginning."""
    found = faded([Window(0, 10), Window(4, 14)], 10.0, NOTHING)
    assert [found[n] > 0 for n in range(14)] == [True] * 7 + [False] * 7
    assert faded([Window(0, 4), Window(2, 6)], NOTHING, NOTHING)[3] < -10


def test_a_fall_back_gives_way_to_a_mask_of_the_other_windows_own():
    fade = Fade([Window(0, 6), Window(1, 7)])
    merged = {}
    for index, (value, filled) in enumerate(((8.0, True), (-3.0, False))):
        for number in fade.plan[index].numbers():
            merged |= dict(fade.add(index, number, masks(value, empty=filled, filled=filled)))
    assert all(float(merged[n].logits.max()) < 0 and not merged[n].filled for n in range(1, 7))
    assert bool(merged[0].filled) and float(merged[0].logits.max()) == 8


def test_a_window_that_knows_nothing_has_no_say():
    found = faded([Window(0, 4), Window(2, 6)], 1.0, None)
    assert [found[n] for n in range(6)] == pytest.approx([1, 1, 1, 1, NOTHING, NOTHING])
    assert set(faded([Window(0, 4), Window(2, 6)], None, None).values()) == {NOTHING}


def test_a_frame_is_empty_if_no_window_saw_anything():
    fade = Fade([Window(0, 3), Window(1, 4)])
    seen = {}
    for index, empty in ((0, True), (1, False)):
        for number in fade.plan[index].numbers():
            seen |= dict(fade.add(index, number, masks(1.0, empty=empty, filled=empty)))
    assert [bool(seen[n].empty) for n in range(4)] == [True, False, False, False]
    assert [bool(seen[n].filled) for n in range(4)] == [True, False, False, False]
    assert np.allclose([float(seen[n].logits.max()) for n in range(4)], 1.0)
