"""The frozen LLM in 8 or 4 bits, by bitsandbytes, for devices that hold no more.

Source of the formats: Dettmers et al., arXiv 2208.07339 (8 bit: a scale per row) and arXiv 2305.14314 (4 bit: NF4).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from salmacli.errors import ConfigError
from salmacli.models.mllm.base import Mllm


def quantize(mllm: Mllm, bits: str, compute: torch.dtype) -> None:
    """Put quantised matrices in the place of the language model's linear layers; the head stays as it is.

    Args:
        mllm: changed in place, where its weights are.
        bits: "8bit" or "4bit".
        compute: type in which 4-bit weights are multiplied.

    Raises:
        ConfigError: bitsandbytes is not there.
    """
    try:
        from bitsandbytes import nn as bnb
    except ImportError as error:
        raise ConfigError(
            f"train.quantize = {bits!r}, but bitsandbytes is not installed", 'pip install "salma[quant]"'
        ) from error
    llm = mllm.parts()["language model"]
    for name, old in [(name, module) for name, module in llm.named_modules() if isinstance(module, nn.Linear)]:
        sizes = (old.in_features, old.out_features, old.bias is not None)
        if bits == "4bit":
            new: Any = bnb.Linear4bit(*sizes, compute_dtype=compute, quant_type="nf4", device="meta")
            kind = partial(bnb.Params4bit, requires_grad=False, quant_type="nf4", module=new)
            # Some CPUs would get a coarser format as soon as the model is evaluated, and training would go on so.
            new.support_avx512bf16_for_cpu = False
        else:
            new = bnb.Linear8bitLt(*sizes, has_fp16_weights=False, device="meta")
            kind = partial(bnb.Int8Params, requires_grad=False, has_fp16_weights=False)
        new.weight = _outline(old.weight, bits) if old.weight.is_meta else _quantized(old.weight, kind)
        new.bias = old.bias
        llm.set_submodule(name, new)


def _quantized(weight: Tensor, kind: Callable[[Tensor], Any]) -> nn.Parameter:
    """The weight in few bits, which bitsandbytes makes of one on the CPU when it comes to its device."""
    quantized: nn.Parameter = kind(weight.detach().cpu()).to(weight.device)
    return quantized


def _outline(weight: Tensor, bits: str) -> nn.Parameter:
    """What takes as much memory, of a model that has none."""
    shape, dtype = ((weight.numel() // 2, 1), torch.uint8) if bits == "4bit" else (weight.shape, torch.int8)
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is one of bitsandbytes' layers."""
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def dense(module: Any) -> Tensor:
    """The matrix (out, in) that a quantised layer stands for, in float32."""
    from bitsandbytes import functional

    weight = module.weight
    if type(module).__name__ == "Linear4bit":
        return functional.dequantize_4bit(weight.data, weight.quant_state).float()
    scales = weight.SCB if weight.SCB is not None else module.state.SCB  # it moves at the first use
    return functional.int8_vectorwise_dequant(weight.data, scales).float()
