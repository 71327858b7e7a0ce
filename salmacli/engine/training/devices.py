"""Accelerate, set up for one run: precision, how state is shared between devices, trackers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn
from torch.distributed.fsdp import FSDPModule

from salmacli.config.schema import TrainConfig
from salmacli.engine.prediction.shares import several
from salmacli.errors import ConfigError

_PATIENCE = timedelta(hours=3)


def accelerator_of(train: TrainConfig, folder: Path) -> Accelerator:
    """What drives the devices.

    Args:
        train: precision, sharding, accumulation, trackers.
        folder: of the run; TensorBoard writes below it.

    Raises:
        ConfigError: a package that the settings ask for is missing, or sharding is asked for on one device.
    """
    check_packages(train)
    check_devices(train, 2 if several() else 1)
    cuda = torch.cuda.is_available()
    accelerator = Accelerator(
        # Without a GPU Accelerate stays alone unless it is told that CPUs are meant.
        cpu=not cuda and several(),
        mixed_precision=precision_of(train.precision),
        fsdp_plugin=_fsdp2() if train.sharding == "fsdp2" else None,
        deepspeed_plugin=_deepspeed(train) if train.sharding.startswith("zero") else None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            # The others wait while the first one writes a checkpoint, or has the longest video to look at.
            InitProcessGroupKwargs(timeout=_PATIENCE),
        ],
        log_with=list(train.trackers) or None,
        project_dir=folder,
    )
    if train.sharding.startswith("zero"):
        _keep_from_transformers()
    return accelerator


def check_packages(train: TrainConfig) -> None:
    """Raises ConfigError where an optional package is asked for and missing."""
    wanted: dict[str, str] = {name: f"train.trackers names {name}" for name in train.trackers}
    if train.sharding.startswith("zero"):
        wanted["deepspeed"] = f"train.sharding = {train.sharding!r}"
    for package, what in wanted.items():
        if find_spec(package) is None:
            raise ConfigError(f"{what}, but {package} is not installed", f'pip install "salma[{package}]"')


def check_devices(train: TrainConfig, processes: int) -> None:
    """Raises ConfigError where sharding is asked for, but so many processes, or CPUs, cannot share a model."""
    if train.sharding == "none":
        return
    if processes < 2:
        raise ConfigError(
            f"train.sharding = {train.sharding!r} shares a model between devices, and there is one",
            "add --num-gpus, or leave it out",
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            f"train.sharding = {train.sharding!r}: Accelerate shares models between GPUs only, and there is none",
            "leave it out",
        )


def precision_of(wanted: str) -> str:
    """Accelerate's word for `train.precision`: "bf16" or "no"."""
    if wanted == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return "bf16" if wanted == "bf16" else "no"


def split_by_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Let FSDP gather the LLM layer by layer, and everything else at once.

    Only what every batch runs through may be a unit of its own: one without pictures would leave the others waiting.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and not plugin.transformer_cls_names_to_wrap:
        layers: Any = model.mllm.model.model.language_model.layers  # type: ignore[union-attr]
        plugin.transformer_cls_names_to_wrap = [type(layers[0]).__name__]


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within it every process has the whole of what FSDP shares out, so that it may predict at its own pace."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(True)


def _keep_from_transformers() -> None:
    """Keep transformers from building models in DeepSpeed's way: it would leave fresh weights as they come.

    Every process reads or makes the whole model, the same everywhere, and DeepSpeed shares it out after that.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def _shipped(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((files("salmacli.config") / "sharding" / f"{name}.yaml").read_text(encoding="utf-8")))


def _fsdp2() -> FullyShardedDataParallelPlugin:
    # A part of Accelerate asks the environment, not the plugin.
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    return FullyShardedDataParallelPlugin(**_shipped("fsdp2"))


def _deepspeed(train: TrainConfig) -> DeepSpeedPlugin:
    settings = _shipped(train.sharding)
    settings |= {
        "gradient_accumulation_steps": train.accumulate,
        "gradient_clipping": train.clip_norm,
        "train_micro_batch_size_per_gpu": train.batch_size,
    }
    return DeepSpeedPlugin(hf_ds_config=settings)
