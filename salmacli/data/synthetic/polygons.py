"""Masks as polygons that rasterise to exactly the same pixels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Run = tuple[int, int]  # first row and the row after the last


def outline(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Outlines a mask along its pixel edges.

    Columns are followed from left to right; where they part or join (holes, notches) a new polygon begins,
    since COCO polygons know no holes.

    Args:
        mask: (H, W).

    Returns:
        Polygons as ``[x1, y1, x2, y2, ...]``, as COCO writes them; together they cover the mask exactly.
    """
    open_chains: list[tuple[int, list[Run]]] = []
    done: list[tuple[int, list[Run]]] = []
    filled = np.flatnonzero(mask.any(axis=0))
    for column in range(int(filled[0]), int(filled[-1]) + 1) if filled.size else ():
        runs = _runs(mask[:, column])
        carried: list[tuple[int, list[Run]]] = []
        taken: set[Run] = set()
        for start, chain in open_chains:
            touching = [run for run in runs if _touch(run, chain[-1])]
            rivals = [other for _, other in open_chains if touching and _touch(touching[0], other[-1])]
            if len(touching) == 1 and len(rivals) == 1:
                chain.append(touching[0])
                taken.add(touching[0])
                carried.append((start, chain))
            else:
                done.append((start, chain))
        open_chains = carried + [(column, [run]) for run in runs if run not in taken]
    return [_polygon(start, chain) for start, chain in done + open_chains]


def _runs(column: NDArray[np.bool_]) -> list[Run]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], column, [False]]).astype(np.int8)))
    return [(int(first), int(after)) for first, after in zip(edges[::2], edges[1::2], strict=True)]


def _touch(first: Run, second: Run) -> bool:
    return first[0] < second[1] and second[0] < first[1]


def _polygon(start: int, chain: list[Run]) -> list[float]:
    upper = [point for x, (top, _) in enumerate(chain, start) for point in ((x, top), (x + 1, top))]
    lower = [point for x, (_, end) in enumerate(chain, start) for point in ((x, end), (x + 1, end))]
    ring = upper + lower[::-1]
    corners = [point for before, point in pairwise([ring[-1], *ring]) if before != point]
    around = [corners[-1], *corners, corners[0]]
    # A corner on the straight line between its neighbours says nothing.
    bends = [
        p
        for a, p, b in zip(around, around[1:], around[2:], strict=False)
        if not (a[0] == p[0] == b[0] or a[1] == p[1] == b[1])
    ]
    return [float(value) for point in bends for value in point]
