"""Which parameter learns how fast: AdamW's groups, and the table of parts that a run begins with."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from salmacli.config.schema import RunConfig, TrainConfig
from salmacli.engine.progress import PartRow
from salmacli.models.salma import Salma
from salmacli.models.trained import EMBEDDING, NEW, parts_of, trained_parts

_LAYER = re.compile(r"\.language_model\.layers\.(\d+)\.")


def adamw(model: Salma, config: RunConfig) -> torch.optim.AdamW:
    """The optimiser of what trains."""
    train = config.train
    return torch.optim.AdamW(parameter_groups(model, config), lr=train.learning_rate, betas=train.betas, fused=True)


def parameter_groups(model: Salma, config: RunConfig) -> list[dict[str, Any]]:
    """AdamW's groups: one per learning rate and weight decay, in an order that follows the model's.

    Weight decay acts on matrices only: those that linear layers and convolutions multiply with.
    """
    train = config.train
    matrices = _matrices(model)
    rates = _rates(model, config)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for part in trained_parts(model, config).values():
        for name, parameter in part.items():
            decay = train.weight_decay if id(parameter) in matrices else 0.0
            groups.setdefault((rates[name], decay), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def parts_table(model: Salma, config: RunConfig) -> list[PartRow]:
    """Every part of the model, and whether and how fast it trains."""
    trained, rates = trained_parts(model, config), _rates(model, config)
    rows = []
    for part, parameters in parts_of(model).items():
        mine = trained.get(part, {})
        found = [rates[name] for name in mine]
        total, moving = (sum(p.numel() for p in members.values()) for members in (parameters, mine))
        rows.append(PartRow(part, total, moving, (min(found), max(found)) if found else None))
    return rows


def _rates(model: Salma, config: RunConfig) -> dict[str, float]:
    """Peak learning rate of every parameter that trains, by name."""
    train = config.train
    layers = int(model.mllm.model.config.text_config.num_hidden_layers)
    return {
        name: train.learning_rate * _factor(name, part, train, layers)
        for part, parameters in trained_parts(model, config).items()
        for name in parameters
    }


def _factor(name: str, part: str, train: TrainConfig, layers: int) -> float:
    """What a parameter's learning rate is multiplied with."""
    if part in (EMBEDDING, NEW):
        # The head has rows of new tokens, too, and stands above the last layer.
        return 1.0 if "lm_head" in name else train.layer_decay**layers
    if found := _LAYER.search(name):
        return float(train.layer_decay ** (layers - 1 - int(found[1])))
    return train.gamma_rate if name.startswith("cma.") and name.rpartition(".")[2] == "gamma" else 1.0


def _matrices(model: nn.Module) -> set[int]:
    """Parameters that are multiplied with, but for those that are embeddings, too."""
    kinds = nn.Linear | nn.modules.conv._ConvNd
    found = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
    return found - {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
