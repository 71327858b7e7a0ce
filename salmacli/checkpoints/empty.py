"""Models without memory, their tokenizers, and which of a model's names mean one tensor."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from salmacli.config.files import safe_name
from salmacli.config.schema import ModelConfig
from salmacli.errors import CheckpointError
from salmacli.models.salma import Salma


def empty_model(config: ModelConfig, tokenizer: Any, model_class: type[Salma] = Salma) -> Salma:
    """A model whose tensors have names and shapes and no memory, to compare a file with or to fill from it.

    What is not in a state dict (tables of positions and the like) is real.
    """
    with init_empty_weights(include_buffers=False):
        model = model_class(config, tokenizer)
    # Registering a parameter on the meta device makes a new one, so what was tied must be tied again.
    model.mllm.model.tie_weights()
    return model


def untied(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model's tensors, each once.

    Returns:
        Name → tensor (where the model has it; of tied ones under the first name), and alias → the name that stands
        for it.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = tensor
        else:
            aliases[name] = first
    return tensors, aliases


def read_tokenizer(files: Mapping[str, bytes], place: Path | str) -> PreTrainedTokenizerFast:
    """A tokenizer from its files alone, by name → bytes.

    Args:
        files: As its ``save_pretrained`` wrote them.
        place: What holds them, for messages.

    Raises:
        CheckpointError: They do not make one.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / safe_name(name, f"{place}: tokenizer")).write_bytes(data)
        try:
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            # tokenizers raises bare Exceptions for broken files, transformers whatever the fault leads to.
            raise CheckpointError(
                f"{place}: its tokenizer cannot be read ({error})", "save or copy it again"
            ) from error
