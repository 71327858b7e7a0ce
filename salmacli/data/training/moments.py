"""Which frames of a video: those that the LLM sees, and those that are segmented."""

from __future__ import annotations

from typing import Literal

import numpy as np

Choice = Literal["random", "consecutive"]


def evenly(total: int, count: int) -> np.ndarray:
    """`count` frame indices from 0 to `total` − 1, evenly spread; repeated where the video is shorter."""
    return np.round(np.linspace(0, total - 1, count)).astype(int)


def nearly_evenly(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
    """What prediction sees, `evenly`, each moved by up to half a step, which keeps their order."""
    step = (total - 1) / max(count - 1, 1)
    moved = np.linspace(0, total - 1, count) + rng.uniform(-step / 2, step / 2, count)
    return np.clip(np.round(moved), 0, total - 1).astype(int)


def one_per_segment(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
    """One index out of each of `count` equal segments; all where there are fewer.

    Source: how the predecessor reads ChatUniVi.
    """
    if total <= count:
        return np.arange(total)
    borders = np.linspace(0, total, count + 1).astype(int)
    return rng.integers(borders[:-1], borders[1:])


def to_segment(rng: np.random.Generator, total: int, count: int, choice: Choice) -> np.ndarray:
    """At most `count` different indices in their order: any, or some that follow each other."""
    if choice == "random":
        return np.sort(rng.choice(total, min(count, total), replace=False))
    first = int(rng.integers(max(total - count, 0) + 1))
    return np.arange(first, min(first + count, total))
