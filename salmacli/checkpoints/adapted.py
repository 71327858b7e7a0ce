"""A model in training ↔ the plain one that it amounts to: adapters folded in, and back to where training stopped.

``model.safetensors`` always holds plain weights, which every reader understands. What cannot be had back from them, bit
for bit, lies beside them: LoRA's halves, rows of new tokens, and where averages are saved, what they are averages of.
The matrices that LoRA adapts, and quantised ones, come from the base again; a fingerprint tells whether it is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from salmacli.checkpoints.contents import fingerprint_of
from salmacli.checkpoints.empty import untied
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.training.lora import merge, split_pairs
from salmacli.models.lora import NEW_ROWS, lora_scale
from salmacli.models.quantize import dense, is_quantized
from salmacli.models.salma import Salma

_BASE = ".base_layer."
_ADAPTER = re.compile(rf"\.lora_[AB]\.|\.{NEW_ROWS}$")


def plain_tensors(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, LazyTensor]:
    """The tensors of the plain model that an adapted one amounts to; not copied: they are read when they are needed.

    Args:
        model: a ``Salma``, with adapters or without.
        state: tensors by name that stand in for the model's own, e.g. gathered from all devices.
    """
    raw = _raw(model, state)
    if not isinstance(model, Salma):
        return raw
    pairs, whole = split_pairs(raw, "the model")
    rows = {name: tensor for name, tensor in whole.items() if name.endswith(f".{NEW_ROWS}")}
    plain = {plain_name(name): tensor for name, tensor in whole.items() if name not in rows}
    if pairs:
        scale = lora_scale(model.mllm)
        plain |= {f"{module}.weight": merge(plain[f"{module}.weight"], pair, scale) for module, pair in pairs.items()}
    for name, new in rows.items():
        module = name.removesuffix(f".{NEW_ROWS}")
        ids: Any = model.get_submodule(module).new_ids
        plain[f"{module}.weight"] = _with_rows(plain[f"{module}.weight"], new, ids.cpu())
    return plain


def trained_tensors(
    model: nn.Module, state: Mapping[str, Tensor] | None = None, *, everything: bool = False
) -> dict[str, Tensor]:
    """What trains and cannot be had back from the plain tensors, on the CPU.

    Args:
        model, state: as of `plain_tensors`.
        everything: all that trains, because the plain tensors are those of averages.
    """
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    raw = _raw(model, state)
    return {name: raw[name].read() for name in raw if name in moving and (everything or is_adapter(name))}


def fingerprint(model: nn.Module) -> str | None:
    """SHA-256 of the matrices that come from the base again; None where there are none.

    Take it before the model is sharded: it needs them whole.
    """
    found = {name: tensor for name, tensor in _raw(model).items() if is_of_base(name, model)}
    return fingerprint_of(found) if found else None


def _raw(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, LazyTensor]:
    """The model's tensors as they are, each once; quantised ones as the matrices that they stand for."""
    tensors = {name: _lazy(name, (state or {}).get(name, one)) for name, one in untied(model)[0].items()}
    for path, module in model.named_modules():
        if is_quantized(module):
            weight = f"{path}.weight"
            tensors = {name: one for name, one in tensors.items() if not name.startswith(f"{path}.") or "bias" in name}
            shape = (module.out_features, module.in_features)
            tensors[weight] = LazyTensor(shape, torch.float32, partial(_dense, module), weight)
    return tensors


def _lazy(name: str, tensor: Tensor) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), tensor.dtype, partial(_to_cpu, tensor), name)


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _dense(module: nn.Module) -> Tensor:
    return dense(module).cpu()


def plain_name(name: str) -> str:
    """The name in the plain model of what is itself in both."""
    return name.replace(_BASE, ".")


def is_adapter(name: str) -> bool:
    """Whether a tensor is one that the plain model does not have."""
    return _ADAPTER.search(name) is not None


def is_of_base(name: str, model: nn.Module) -> bool:
    """Whether a tensor is frozen and in the file only as part of something else, or rounded otherwise."""
    if name.endswith(f"{_BASE}weight"):
        return True
    return name.endswith(".weight") and is_quantized(model.get_submodule(name.removesuffix(".weight")))


def _with_rows(weight: LazyTensor, new: LazyTensor, ids: Tensor) -> LazyTensor:
    def replaced(old: Tensor) -> Tensor:
        rows = new.read()
        return old.to(torch.promote_types(old.dtype, rows.dtype)).index_copy(0, ids, rows)

    return weight.then(replaced, dtype=torch.promote_types(weight.dtype, new.dtype))
