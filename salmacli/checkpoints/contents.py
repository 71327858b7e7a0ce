"""What a SALMA checkpoint holds, whatever container it lies in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Contents:
    """A whole checkpoint but for the trainer's state.

    Attributes:
        step: Optimiser steps that led here.
        model: The model's section of the config, as plain data.
        run_config: The whole run's config, as plain data; empty where nobody trained.
        tokenizer: File name → bytes, as the tokenizer's ``save_pretrained`` wrote them.
        tensors: Name → tensor on the CPU; of tied tensors only the first.
    """

    step: int
    model: Mapping[str, Any]
    run_config: Mapping[str, Any]
    tokenizer: Mapping[str, bytes]
    tensors: Mapping[str, Tensor]


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes: the same in every container."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def untied(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model's tensors, each once.

    Returns:
        Name → tensor (detached, where the model has it), and alias → the name that stands for it.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        first = names.setdefault(place, name) if tensor.numel() and tensor.device.type != "meta" else name
        if first == name:
            tensors[name] = tensor.detach()
        else:
            aliases[name] = first
    return tensors, aliases
