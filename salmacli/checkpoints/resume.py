"""Where a training begins, and where it goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from salmacli.checkpoints.adapted import fingerprint, is_adapter, is_of_base, plain_name
from salmacli.checkpoints.empty import untied
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import first_few
from salmacli.checkpoints.load import open_checkpoint, read_trainer_file
from salmacli.checkpoints.pretrained import SalmaModel
from salmacli.config.schema import RunConfig
from salmacli.errors import CheckpointError
from salmacli.models.salma import Salma
from salmacli.models.trained import prepare_training


def model_to_train(
    config: RunConfig, expressions: Iterable[str], resume: Path | None = None, *, bf16: bool
) -> SalmaModel:
    """A run's model as its training begins, or goes on: what trains requires gradients, the rest is frozen.

    Args:
        config: the whole run.
        expressions: of the training data; a fresh tokenizer is learnt from them.
        resume: a checkpoint of this run to go on from.
        bf16: whether matrices are multiplied in bfloat16 (autocast).

    Raises:
        CheckpointError: a base or the checkpoint is missing, broken or unsafe, or they do not belong together.
        ConfigError: the config says otherwise than a base does.
    """
    # Nothing of the base is needed where the checkpoint holds all of the model as it is.
    if resume is None or read_trainer_file(resume).get("frozen") is not None:
        model = SalmaModel.build(config.model, expressions)
    else:
        model = SalmaModel.from_pretrained(resume)
    prepare_training(model, config, bf16=bf16)
    if resume is not None:
        restore(model, resume)
    return model


@torch.no_grad()
def restore(model: Salma, folder: Path) -> None:
    """Bring a model back to where a checkpoint was saved, bit for bit.

    Args:
        model: built and prepared for training as the run's own was, and not yet sharded.
        folder: a checkpoint of that run.

    Raises:
        CheckpointError: the checkpoint is of another recipe or base, or broken.
    """
    content, plain = read_trainer_file(folder), open_checkpoint(folder)[1].tensors
    if content.get("frozen") != fingerprint(model):
        raise CheckpointError(
            f"{folder} was trained on other frozen weights than these: model.mllm.base or train.recipe has changed",
            "resume with the run's own config and base, or begin a new run",
        )
    own = untied(model)[0]
    kept: Mapping[str, Tensor] = content.get("trained", {})
    sources = {
        name: plain[plain_name(name)] for name in own if plain_name(name) in plain and not is_of_base(name, model)
    }
    sources |= {name: LazyTensor.of(tensor) for name, tensor in kept.items()}
    adapters = {name for name in own if is_adapter(name)}
    wrong = (kept.keys() - own.keys()) | (adapters - kept.keys())
    wrong |= {name for name in kept.keys() & own.keys() if kept[name].shape != own[name].shape}
    if wrong:
        raise CheckpointError(
            f"{folder} and this run differ in {first_few(sorted(wrong))}: train.recipe or train.lora has changed",
            "resume with the run's own config, or begin a new run",
        )
    for name, source in sources.items():
        own[name].copy_(source.read())
