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


def test_masks_fade_from_one_window_to_the_next():
    found = faded([Window(0, 6), Window(3, 9)], 1.0, 5.0)
    assert [found[n] for n in range(9)] == pytest.approx([1, 1, 1, 2, 3, 4, 5, 5, 5])


def test_more_than_two_windows_may_share_a_frame():
    found = faded([Window(0, 5), Window(2, 7), Window(4, 9)], 1.0, 2.0, 3.0)
    assert found[4] == pytest.approx((1 * 1 + 3 * 2 + 1 * 3) / 5)


def test_a_window_that_knows_nothing_has_no_say():
    assert faded([Window(0, 4), Window(2, 6)], 1.0, None) == {0: 1, 1: 1, 2: 1, 3: 1, 4: NOTHING, 5: NOTHING}
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
