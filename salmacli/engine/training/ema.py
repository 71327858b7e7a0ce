"""A moving average of the weights that train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class MovingAverage:
    """Averages of parameters, in float32, each on its device and in its shard.

    Args:
        parameters: those that train, by name.
        decay: of the average, per step; less in the first steps, or the start would weigh for long.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.averages = {name: parameter.detach().float().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step` (from 1)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, average in self.averages.items():
            average.lerp_(self.parameters[name].float(), weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the parameters hold their averages."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._set(self.averages)
        try:
            yield
        finally:
            self._set(own)

    def whole(self) -> dict[str, Tensor]:
        """The averages, gathered from all processes, which all call it."""
        return {name: one.full_tensor() if hasattr(one, "full_tensor") else one for name, one in self.averages.items()}

    @torch.no_grad()
    def restore(self, averages: Mapping[str, Tensor]) -> None:
        """Undo `whole`."""
        for name, average in self.averages.items():
            average.copy_(_like(averages[name], average))

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def _like(tensor: Tensor, other: Any) -> Tensor:
    """A whole tensor on another's device, and in its shards where it has some."""
    if not hasattr(other, "placements"):
        return tensor.to(other.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
