"""Tensors that are read when they are needed: a checkpoint passes through the memory one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of which only the outline is known yet.

    Attributes:
        shape, dtype: of what `read` gives.
        read: gives the tensor on the CPU, memory-mapped where the file allows it; nothing is kept afterwards.
        origin: the file and the name in it, for messages.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    origin: str = ""

    @classmethod
    def of(cls, tensor: Tensor, origin: str = "") -> LazyTensor:
        """A tensor that is in memory (or mapped) already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor, origin)

    @property
    def bytes(self) -> int:
        """Size of the tensor, once read."""
        return math.prod(self.shape) * self.dtype.itemsize

    def then(
        self,
        change: Callable[[Tensor], Tensor],
        shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
    ) -> LazyTensor:
        """What `change` makes of the tensor, once read; name its shape or type where they become others."""
        read = self.read
        return replace(self, shape=shape or self.shape, dtype=dtype or self.dtype, read=lambda: change(read()))
