"""Attention matrices that published models store as one, and transformers as three."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.errors import CheckpointError

INTERNLM2 = "InternLM2ForCausalLM"


@dataclass(frozen=True)
class Heads:
    """Attention heads of an InternLM2, whose queries, keys and values lie interleaved in one matrix.

    Attributes:
        queries: how many heads ask.
        keys: how many are asked; a divisor of `queries`.
    """

    queries: int
    keys: int

    @classmethod
    def of(cls, native: Mapping[str, Any]) -> Heads | None:
        """Those of a model section's ``mllm.native``; None if its language model was no InternLM2."""
        text = native.get("text_config") or {}
        if INTERNLM2 not in (text.get("architectures") or ()):
            return None
        queries = int(text["num_attention_heads"])
        return cls(queries, int(text.get("num_key_value_heads") or queries))


@dataclass(frozen=True)
class Fusion:
    """How one matrix there is three here.

    Attributes:
        original: template of the fused name.
        native: template of the three names; ``{q}`` is q, k or v.
        split: the fused matrix → queries, keys, values.
        join: the inverse.
    """

    original: str
    native: str
    split: Callable[[LazyTensor], tuple[LazyTensor, ...]]
    join: Callable[[Sequence[LazyTensor]], LazyTensor]


def stacked(original: str, native: str) -> Fusion:
    """Queries above keys above values."""
    return Fusion(original, native, _thirds, partial(_joined, torch.cat))


def interleaved(original: str, native: str, heads: Heads) -> Fusion:
    """Per key head the queries that ask it, then itself, then its value: ``(h gs d) z``."""
    return Fusion(original, native, partial(_groups, heads), partial(_joined, partial(_regrouped, heads)))


def _thirds(fused: LazyTensor) -> tuple[LazyTensor, ...]:
    rows, rest = divmod(fused.shape[0], 3)
    if rest:
        raise CheckpointError(f"{fused.origin} has {fused.shape[0]} rows, which are no q, k and v", "it is damaged")
    shape = (rows, *fused.shape[1:])
    return tuple(fused.then(partial(_rows, start=n * rows, stop=(n + 1) * rows), shape=shape) for n in range(3))


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor[start:stop]


def _groups(heads: Heads, fused: LazyTensor) -> tuple[LazyTensor, ...]:
    size, rest = divmod(fused.shape[0], heads.queries + 2 * heads.keys)
    if rest or heads.queries % heads.keys:
        told = f"{heads.queries} query and {heads.keys} key heads"
        raise CheckpointError(f"{fused.origin} has {fused.shape[0]} rows, not those of {told}", "check config.json")
    own = heads.queries // heads.keys

    def part(start: int, stop: int) -> LazyTensor:
        shape = (heads.keys * (stop - start) * size, *fused.shape[1:])
        return fused.then(
            lambda whole: whole.unflatten(0, (heads.keys, own + 2, size))[:, start:stop].flatten(0, 2), shape=shape
        )

    return part(0, own), part(own, own + 1), part(own + 1, own + 2)


def _regrouped(heads: Heads, parts: list[Tensor]) -> Tensor:
    size = parts[1].shape[0] // heads.keys
    return torch.cat([part.unflatten(0, (heads.keys, -1, size)) for part in parts], dim=1).flatten(0, 2)


def _joined(join: Callable[[list[Tensor]], Tensor], parts: Sequence[LazyTensor]) -> LazyTensor:
    if len({(part.shape[1:], part.dtype) for part in parts}) > 1:
        kinds = ", ".join(f"{part.origin} {part.shape} {part.dtype}" for part in parts)
        raise CheckpointError(f"q, k and v do not go into one matrix: {kinds}", "they are not of one model")
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return LazyTensor(shape, parts[0].dtype, lambda: join([part.read() for part in parts]), parts[0].origin)
