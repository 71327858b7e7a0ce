"""The frozen LLM in 8 or 4 bits, by bitsandbytes, for devices that hold no more.

Source of the formats: Dettmers et al., arXiv 2208.07339 (8 bit: a scale per row) and arXiv 2305.14314 (4 bit: NF4).
"""

from __future__ import annotations

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
        weight, device = old.weight.detach().cpu(), old.weight.device
        if bits == "4bit":
            new: Any = bnb.Linear4bit(*sizes, compute_dtype=compute, quant_type="nf4", device="meta")
            new.weight = bnb.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new).to(device)
            # Some CPUs would get a coarser format as soon as the model is evaluated, and training would go on so.
            new.support_avx512bf16_for_cpu = False
        else:
            new = bnb.Linear8bitLt(*sizes, has_fp16_weights=False, device="meta")
            new.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
        new.bias = old.bias
        llm.set_submodule(name, new)


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
