"""How far tensors are from what they started as, per tensor and per module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from salmacli.checkpoints.files.lazy import LazyTensor

# How many names of a tensor's path make its module in the report, e.g. mllm.model.model.vision_tower.
_DEPTH = {"mllm": 4, "grounding": 2}
_CHUNK = 1 << 22  # numbers compared at a time: a vocabulary's embedding need not be copied to float32 whole


@dataclass(frozen=True)
class Difference:
    """Between a tensor and the one in its base.

    Attributes:
        changed: whether any number differs, or there are other rows than before.
        relative: ‖new − old‖ / ‖old‖, Frobenius, over the rows that both have; 1 where the old ones are all zero.
        cosine: of the angle between the two, over the rows that both have; 0 where either is all zero.
    """

    changed: bool
    relative: float
    cosine: float


@dataclass(frozen=True)
class ModuleRow:
    """One line of the report.

    Attributes:
        module: e.g. ``mllm.model.model.language_model``.
        tensors, parameters, bytes: of the module.
        dtype: type or types of its tensors.
        changed: how many of its tensors differ from the base's; None where there is no base to compare with.
        new: how many the base does not have; None likewise.
        change, most: median and maximum of the changed tensors' relative differences; None where there are none.
    """

    module: str
    tensors: int
    parameters: int
    dtype: str
    bytes: int
    changed: int | None = None
    new: int | None = None
    change: float | None = None
    most: float | None = None


def finite(tensor: Tensor) -> bool:
    """Whether all numbers are; without a copy of them, and true of nothing."""
    return not tensor.numel() or all(bool(torch.isfinite(end)) for end in tensor.aminmax())


def difference(old: Tensor, new: Tensor) -> Difference:
    """Compare (R, …) with (R', …); leading rows are compared where R and R' differ."""
    rows = min(len(old), len(new)) if old.ndim and old.shape != new.shape else None
    a, b = (tensor if rows is None else tensor[:rows] for tensor in (old, new))
    a, b = a.reshape(-1), b.reshape(-1)
    apart = of_old = of_new = both = 0.0
    equal = rows is None
    for start in range(0, a.numel(), _CHUNK):
        x, y = (tensor[start : start + _CHUNK].float() for tensor in (a, b))
        gap = y - x
        equal = equal and not gap.any()
        apart += torch.dot(gap, gap).item()
        of_old += torch.dot(x, x).item()
        of_new += torch.dot(y, y).item()
        both += torch.dot(x, y).item()
    relative = math.sqrt(apart / of_old) if of_old else float(apart > 0)
    return Difference(not equal, relative, both / math.sqrt(of_old * of_new) if of_old and of_new else 0.0)


def key_report(
    tensors: Mapping[str, LazyTensor],
    base: Iterable[str] | None = None,
    differences: Mapping[str, Difference] | None = None,
) -> list[ModuleRow]:
    """One row per module, in the order of the tensors.

    Args:
        tensors: of the model.
        base: names that the base has; None without one.
        differences: of the tensors that were compared; all others are the base's own.
    """
    known, found = None if base is None else set(base), differences or {}
    groups: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(module_of(name), {})[name] = tensor
    rows = []
    for module, members in groups.items():
        changes = [found[name].relative for name in members if name in found and found[name].changed]
        rows.append(
            ModuleRow(
                module=module,
                tensors=len(members),
                parameters=sum(math.prod(tensor.shape) for tensor in members.values()),
                dtype=", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in members.values()})),
                bytes=sum(tensor.bytes for tensor in members.values()),
                changed=None if known is None else len(changes),
                new=None if known is None else len(members.keys() - known),
                change=median(changes) if changes else None,
                most=max(changes, default=None),
            )
        )
    return rows


def module_of(name: str) -> str:
    """The part of the model that a tensor belongs to, e.g. ``cma`` or ``grounding.memory_encoder``."""
    parts = name.split(".")[:-1] or [name]
    return ".".join(parts[: _DEPTH.get(parts[0], 1)])
