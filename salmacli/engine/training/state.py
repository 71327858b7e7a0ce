"""What a training needs to go on exactly where it was, beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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

from salmacli.errors import CheckpointError

DEEPSPEED = "deepspeed"
_AS_BEFORE = "resume with as many processes, and the train.sharding, that saved it"
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


def is_deepspeed(step: nn.Module) -> bool:
    """Whether DeepSpeed drives a model; it keeps and writes its state itself."""
    return hasattr(step, "get_global_grad_norm")


def save_deepspeed(step: Any, folder: Path) -> dict[str, Path]:
    """Let DeepSpeed write each process's share beside where the checkpoint will be; its name in there → where it is.

    All processes call it.
    """
    if not is_deepspeed(step):
        return {}
    beside = folder.with_name(f".{folder.name}.{DEEPSPEED}")
    step.save_checkpoint(str(beside), tag=DEEPSPEED, exclude_frozen_parameters=True)
    return {DEEPSPEED: beside}


def restore_deepspeed(step: Any, folder: Path) -> None:
    """Undo `save_deepspeed`. Its files are pickles, so only a run's own are read.

    Raises:
        CheckpointError: the checkpoint was saved without DeepSpeed, or by another number of processes.
    """
    if not is_deepspeed(step):
        return
    try:
        read, _ = step.load_checkpoint(str(folder / DEEPSPEED), tag=DEEPSPEED, load_module_strict=False)
    except (AssertionError, RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: DeepSpeed cannot go on ({error})", _AS_BEFORE) from error
    if read is None:
        raise CheckpointError(f"{folder} holds no state of DeepSpeed", _AS_BEFORE)


def is_sharded(step: nn.Module) -> bool:
    """Whether FSDP has shared a model out."""
    return any(isinstance(module, FSDPModule) for module in step.modules())


def _arrived(tensor: Any) -> Tensor:
    """A plain tensor of one that may still be on its way between processes."""
    return cast(Tensor, tensor.wait() if hasattr(tensor, "wait") else tensor)


def optimizer_state(accelerator: Accelerator, step: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The optimiser's state by names of parameters, whole, on the main process; nothing of DeepSpeed's.

    All processes call it.
    """
    if is_deepspeed(step):
        return {}
    sharded = is_sharded(step)
    step = step if sharded else accelerator.unwrap_model(step)
    options = _WHOLE if sharded else StateDictOptions(full_state_dict=True)
    state = get_optimizer_state_dict(step, optimizer.optimizer, options=options)
    return cast(dict[str, Any], tree_map_only(Tensor, _arrived, state))


def restore_optimizer(accelerator: Accelerator, step: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Undo `optimizer_state`, which every process has read."""
    if is_deepspeed(step):
        return
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
