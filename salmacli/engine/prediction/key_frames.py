"""Which K frames of a window the LLM reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from salmacli.data.training.moments import evenly

Choice = Literal["uniform", "first", "diverse"]


def choose(how: Choice, total: int, count: int, candidates: int, looks: Callable[[Sequence[int]], Tensor]) -> list[int]:
    """Choose frames.

    Args:
        how: "uniform" spreads them evenly from the first to the last and repeats them in a shorter video, as training
            does; "first" takes the first ones; "diverse" those whose looks differ most.
        total: frames of the window.
        count: K.
        candidates: "diverse" chooses among at most so many, evenly spread.
        looks: called for "diverse" with M frames, gives their features (M, C).

    Returns:
        At most K numbers from 0 to `total` − 1, in order.
    """
    if how == "uniform":
        return [int(number) for number in evenly(total, count)]
    if how == "first" or total <= count:
        return list(range(min(count, total)))
    spread = np.unique(evenly(total, min(candidates, total))).tolist()
    return sorted(spread[number] for number in farthest(looks(spread), count))


def farthest(points: Tensor, count: int) -> list[int]:
    """Rows of (M, C) that cover the others best, greedily.

    The first is the one nearest to the mean, each further one the one farthest from all chosen so far; among equals the
    earlier wins.
    """
    points = points.float()
    chosen = [int((points - points.mean(0)).norm(dim=1).argmin())]
    distance = (points - points[chosen[0]]).norm(dim=1)
    while len(chosen) < min(count, len(points)):
        distance[chosen] = -1.0  # frames that look alike are still different frames
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=1))
    return chosen
