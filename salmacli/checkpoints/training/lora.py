"""LoRA in files: pairs found by name, merged as W + α/r · B·A.

A file holds A and B of every adapted module, never α: that stands in the training's configuration.
Source: Hu et al., arXiv 2106.09685; names as peft writes them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import first_few
from salmacli.errors import CheckpointError, UsageError

_NAME = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>\w+))?\.weight$")
_KIN = re.compile(r"\.lora_|\.adalora_")  # magnitudes, embeddings, biases: kinds that are not merged here
_STATED = {"alpha": "α", "rank": "rank", "root": "use_rslora", "vision": "α of the vision tower"}


@dataclass(frozen=True)
class Pair:
    """What LoRA adds to one weight (out, in).

    Attributes:
        down: A, (r, in).
        up: B, (out, r).
    """

    down: LazyTensor
    up: LazyTensor

    @property
    def rank(self) -> int:
        """Its r."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight it fits."""
        return self.up.shape[0], self.down.shape[1]


@dataclass(frozen=True)
class LoraSettings:
    """What a training's configuration says about its LoRA.

    Attributes:
        alpha: α.
        rank: the r it states; None where only α is known.
        root: rank-stabilised: α/√r instead of α/r; None where it is not stated, which counts as α/r.
        vision: of the vision tower, where it has settings of its own.
    """

    alpha: float
    rank: int | None = None
    root: bool | None = None
    vision: LoraSettings | None = None

    def scale(self, rank: int) -> float:
        """What B·A is multiplied with."""
        return self.alpha / (rank**0.5 if self.root else rank)

    def __str__(self) -> str:
        known = {"r": self.rank, "use_rslora": self.root, "in the vision tower": self.vision}
        told = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
        return f"{self.alpha:g} ({told})" if told else f"{self.alpha:g}"


def agreed(stated: Mapping[str, LoraSettings]) -> LoraSettings:
    """What all who state something about one training's LoRA say together.

    Args:
        stated: by who states it, e.g. ``--lora-alpha``; at least one.

    Returns:
        Every value that anyone states; ``root`` is False where no one states it.

    Raises:
        UsageError: Two of them state different values.
    """
    found: dict[str, Any] = {"root": False}
    by: dict[str, tuple[str, LoraSettings]] = {}
    for who, settings in stated.items():
        for name, label in _STATED.items():
            value = getattr(settings, name)
            if value is None:
                continue
            first, other = by.setdefault(name, (who, settings))
            if getattr(other, name) != value:
                one, two = (f"{x:g}" if isinstance(x, float) else x for x in (getattr(other, name), value))
                raise UsageError(
                    f"LoRA's {label} is stated differently: {one} ({first}), {two} ({who})",
                    "give what the training used",
                )
            found[name] = value
    return LoraSettings(**found)


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def split_pairs(tensors: Mapping[str, LazyTensor], place: str) -> tuple[dict[str, Pair], dict[str, LazyTensor]]:
    """Tell LoRA's tensors from the others.

    Args:
        tensors: of a file, by any names that end as peft's do.
        place: the file, for messages.

    Returns:
        Module → its pair, and the tensors that are not LoRA's.

    Raises:
        CheckpointError: A half is missing, shapes contradict each other, there are several adapters, or a kind of LoRA
            that is more than B·A.
    """
    halves: dict[str, dict[str, LazyTensor]] = {}
    others, adapters = {}, set()
    for name, tensor in tensors.items():
        if found := _NAME.match(name):
            halves.setdefault(found["module"], {})[found["side"]] = tensor
            adapters.add(found["adapter"])
        else:
            others[name] = tensor
    if strange := sorted(name for name in others if _KIN.search(name)):
        raise CheckpointError(
            f"{place} holds {first_few(strange)} of a kind of LoRA that is not merged here",
            "merge it where it was trained",
        )
    if len(adapters) > 1:
        told = ", ".join(sorted(map(str, adapters)))
        raise CheckpointError(f"{place} holds several LoRA adapters ({told})", "save the one that is meant")
    if lonely := sorted(module for module, sides in halves.items() if len(sides) < 2):
        missing = [f"{module}.lora_{'B' if 'A' in halves[module] else 'A'}" for module in lonely]
        raise CheckpointError(f"{place} lacks {first_few(missing)}, of which it has the other half", "save it again")
    pairs = {module: Pair(sides["A"], sides["B"]) for module, sides in halves.items()}
    for module, pair in pairs.items():
        a, b = pair.down.shape, pair.up.shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise CheckpointError(f"{place}: lora_A {a} and lora_B {b} of {module} do not fit each other")
    return pairs, others


def rank_of(pairs: Mapping[str, Pair], settings: LoraSettings | None, place: str) -> int:
    """The rank that all pairs have.

    Raises:
        CheckpointError: They differ among each other, or from the rank that the settings state.
    """
    ranks = Counter(pair.rank for pair in pairs.values())
    rank = ranks.most_common(1)[0][0]
    if odd := sorted(module for module, pair in pairs.items() if pair.rank != rank):
        raise CheckpointError(
            f"{place}: LoRA has rank {rank}, but {pairs[odd[0]].rank} in {first_few(odd)}",
            "α belongs to one rank; convert a file of one rank",
        )
    if settings is not None and settings.rank not in (None, rank):
        raise CheckpointError(
            f"{place}: its LoRA has rank {rank}, but its configuration states {settings.rank}",
            "name the configuration that this file was trained with",
        )
    return rank


def merge(weight: LazyTensor, pair: Pair, scale: float) -> LazyTensor:
    """W + scale · B·A, computed in float32 at least.

    The result has the wider of their types, so that what was trained in float32 stays it.
    """
    dtype = torch.promote_types(weight.dtype, torch.promote_types(pair.up.dtype, pair.down.dtype))

    wide = torch.promote_types(dtype, torch.float32)

    def merged(base: Tensor) -> Tensor:
        up, down = pair.up.read().to(wide), pair.down.read().to(wide)
        return torch.addmm(base.to(wide), up, down, alpha=scale).to(dtype)

    return weight.then(merged, dtype=dtype)
