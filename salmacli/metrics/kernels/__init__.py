"""The few loops over pixels: compiled by Numba where it is installed, in NumPy otherwise, with the same results."""

from __future__ import annotations

from pathlib import Path

from salmacli.metrics.kernels import plain
from salmacli.metrics.kernels.plain import BAD_CHARACTER, CUT_OFF, FINE, NEGATIVE, TOO_LONG, Planes

try:
    from salmacli.metrics.kernels import compiled
except ImportError:  # no Numba for this Python
    compiled = None  # type: ignore[assignment]

KERNELS = ("count", "count_labels", "fill", "overlap", "pick", "popcount", "runs_of_text", "trace")

_chosen = plain if compiled is None else compiled
count, count_labels, fill, overlap = _chosen.count, _chosen.count_labels, _chosen.fill, _chosen.overlap
pick, popcount, runs_of_text, trace = _chosen.pick, _chosen.popcount, _chosen.runs_of_text, _chosen.trace


def first_time() -> bool:
    """Whether the first call will compile, which takes some seconds; it is kept where there is a place for it.

    What an earlier version left there is taken for compiled, although it is not.
    """
    if compiled is None:
        return False
    kept = compiled.count.stats.cache_path
    return kept is None or not any(Path(kept).glob("compiled.*.nbi"))


__all__ = ["BAD_CHARACTER", "CUT_OFF", "FINE", "KERNELS", "NEGATIVE", "TOO_LONG", "Planes", *KERNELS, "first_time"]
