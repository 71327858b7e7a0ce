"""What a SALMA checkpoint holds, whatever container it lies in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import raw_bytes, read_as_announced


@dataclass(frozen=True)
class Contents:
    """A whole checkpoint but for the trainer's state.

    Attributes:
        step: Optimiser steps that led here.
        model: The model's section of the config, as plain data.
        run_config: The whole run's config, as plain data; empty where nobody trained.
        tokenizer: File name → bytes, as the tokenizer's ``save_pretrained`` wrote them.
        tensors: Name → tensor, read when it is needed; of tied tensors only the first.
        provenance: Where it came from: sources with the hashes of their files, notes; empty where that is a run.
    """

    step: int
    model: Mapping[str, Any]
    run_config: Mapping[str, Any]
    tokenizer: Mapping[str, bytes]
    tensors: Mapping[str, LazyTensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def fingerprint_of(tensors: Mapping[str, LazyTensor]) -> str:
    """SHA-256 over names, types, shapes and bytes: the same in every container. Reads one tensor at a time."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        digest(hasher, name, read_as_announced(name, tensors[name]))
    return hasher.hexdigest()


def digest(hasher: Any, name: str, tensor: Tensor) -> None:
    """Add one contiguous CPU tensor to a fingerprint; they must come in the order of their names."""
    hasher.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    hasher.update(raw_bytes(tensor))
