"""What a training needs to go on exactly where it was, beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

# Whole on the first process, wherever the pieces are: the number of processes may change in between.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def model_state(accelerator: Accelerator, step: nn.Module) -> dict[str, Tensor] | None:
    """The model's tensors by its own names, whole, on the main process; None where they lie in the model as they are.

    All processes call it.
    """
    kind = str(accelerator.distributed_type.value)
    if kind == "FSDP":
        found = get_model_state_dict(step, options=_WHOLE)
    elif kind == "DEEPSPEED" and accelerator.deepspeed_plugin.zero_stage == 3:
        found = accelerator.get_state_dict(step)
    else:
        return None
    return {name.removeprefix("model."): tensor for name, tensor in (found or {}).items()}


def optimizer_state(accelerator: Accelerator, step: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The optimiser's state by names of parameters, whole, on the main process. All processes call it."""
    step = accelerator.unwrap_model(step) if str(accelerator.distributed_type.value) != "FSDP" else step
    options = _WHOLE if str(accelerator.distributed_type.value) == "FSDP" else StateDictOptions(full_state_dict=True)
    return dict(get_optimizer_state_dict(step, optimizer.optimizer, options=options))


def restore_optimizer(accelerator: Accelerator, step: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Undo `optimizer_state`, which every process has read."""
    sharded = str(accelerator.distributed_type.value) == "FSDP"
    step = step if sharded else accelerator.unwrap_model(step)
    options = _SPREAD if sharded else StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(step, optimizer.optimizer, dict(state), options=options)


def random_states() -> list[dict[str, Any]]:
    """Torch's generators of all processes, by rank; nothing else draws. All processes call it."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return list(gather_object([{"cpu": torch.get_rng_state(), "cuda": cuda}]))


def restore_random(states: list[dict[str, Any]], rank: int) -> None:
    """Set this process's generators; where more processes go on than there were, the new ones keep their own."""
    if rank >= len(states):
        return
    torch.set_rng_state(states[rank]["cpu"])
    if states[rank]["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[rank]["cuda"])
