"""What a training needs to go on exactly where it was, beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

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
from torch.distributed.fsdp import FSDPModule
from torch.utils._pytree import tree_map_only

# Whole on the first process, wherever the pieces are: the number of processes may change in between.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def model_state(accelerator: Accelerator, step: nn.Module) -> dict[str, Tensor] | None:
    """The model's tensors by its own names, whole, on the main process; None where they lie in the model as they are.

    All processes call it.
    """
    if is_sharded(step):
        found = get_model_state_dict(step, options=_WHOLE)
    elif any(hasattr(parameter, "ds_id") for parameter in step.parameters()):  # of ZeRO-3
        found = accelerator.get_state_dict(step)
    else:
        return None
    return {name.removeprefix("model."): _arrived(tensor) for name, tensor in (found or {}).items()}


def is_sharded(step: nn.Module) -> bool:
    """Whether FSDP has shared a model out."""
    return any(isinstance(module, FSDPModule) for module in step.modules())


def _arrived(tensor: Any) -> Tensor:
    """A plain tensor of one that may still be on its way between processes."""
    return cast(Tensor, tensor.wait() if hasattr(tensor, "wait") else tensor)


def optimizer_state(accelerator: Accelerator, step: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The optimiser's state by names of parameters, whole, on the main process. All processes call it."""
    sharded = is_sharded(step)
    step = step if sharded else accelerator.unwrap_model(step)
    options = _WHOLE if sharded else StateDictOptions(full_state_dict=True)
    state = get_optimizer_state_dict(step, optimizer.optimizer, options=options)
    return cast(dict[str, Any], tree_map_only(Tensor, _arrived, state))


def restore_optimizer(accelerator: Accelerator, step: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Undo `optimizer_state`, which every process has read."""
    sharded = is_sharded(step)
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
