"""Rows of all processes as those of one, with gradients."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch import distributed as dist


def process_count() -> int:
    """W, processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks.

    Every process must call it, also one without rows, and must compute the same from the result. What that has for a
    gradient is then known to each process for its own rows, and none is exchanged on the way back. Its own gradient
    comes out W times as large, so that the mean over processes, which is what DDP makes, equals the gradient of one
    process that has all rows.

    Args:
        rows: (R, …); R may differ between processes, the rest must not.

    Returns:
        (sum of all R, …).
    """
    return cast(Tensor, _GatheredRows.apply(rows)) if process_count() > 1 else rows  # type: ignore[no-untyped-call]


class _GatheredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = [rows.new_zeros(1, dtype=torch.long) for _ in range(process_count())]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        lengths = [int(count) for count in counts]
        # Collectives want equal shapes, and something in them.
        padded = rows.new_zeros(max(*lengths, 1), *rows.shape[1:])
        padded[: len(rows)] = rows
        everywhere = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(everywhere, padded)
        start = sum(lengths[: dist.get_rank()])
        ctx.own = slice(start, start + len(rows))
        return torch.cat([part[:length] for part, length in zip(everywhere, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0][ctx.own] * process_count()
