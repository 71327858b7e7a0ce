"""Files → model and trainer, strictly: every tensor has its place, or the load says which has not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from pydantic import ValidationError
from torch import nn

from salmacli.checkpoints.combine import fitted
from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.empty import empty_model, read_tokenizer, untied
from salmacli.checkpoints.files.hub import resolve
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.pickles import lazy_state_dict, open_pickle, read_pickle
from salmacli.checkpoints.files.tensors import open_safetensors
from salmacli.checkpoints.layouts import (
    ADAPTER_FORMAT,
    CONFIG,
    TRAINER,
    TRAINER_FORMAT,
    Layout,
    check_schema,
    detect,
    read_config,
    salma_folder,
)
from salmacli.checkpoints.sources.tokenizers import FILES, files_of
from salmacli.config.files import sha256
from salmacli.config.loading import first_fault
from salmacli.config.schema import ModelConfig
from salmacli.errors import CheckpointError
from salmacli.models.salma import Salma

Model = TypeVar("Model", bound=Salma)
# What a SALMA folder on the hub is made of, but for the trainer's state.
_WANTED = ("*.json", "*.safetensors", *FILES)


@dataclass(frozen=True)
class CheckpointInfo:
    """Where a model came from.

    Attributes:
        path: The checkpoint folder, or the ``.pth``.
        layout: Its layout.
        step: Optimiser steps that led to it.
        run_config: The config of the run that made it, as plain data.
        provenance: The sources it was converted from; empty where that is a run.
    """

    path: Path
    layout: Layout
    step: int
    run_config: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """``{"path", "step", "sha256"}`` for results."""
        return {"path": str(self.path), "step": self.step, "sha256": self.weights_hash}

    @cached_property
    def weights_hash(self) -> str:
        """Of the file that holds the weights, or of all their hashes; read once."""
        files = sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else [self.path]
        hashes = [sha256(file) for file in files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def load_checkpoint(
    name_or_path: Path | str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    revision: str | None = None,
    model_class: type[Model] = Salma,  # type: ignore[assignment]
) -> tuple[Model, CheckpointInfo]:
    """Build the model that a SALMA checkpoint describes and fill it, one tensor at a time.

    Args:
        name_or_path: The folder, its ``ckpt.pth`` or ``model.safetensors``, one converted ``.pth``, an adapter folder,
            or a hub id.
        device: Where the tensors are read to, e.g. ``cuda``.
        dtype: Of the parameters. What is rounded at a cost stays float32: the rotary frequencies of the LLM, and the
            directions of SAM 2's position encoding.
        revision: Branch, tag or commit on the hub.
        model_class: What is built.

    Returns:
        The model in evaluation mode, and where it came from.

    Raises:
        CheckpointError: The file is missing, broken, unsafe, of another model, or its tensors do not fit.
    """
    info, contents = open_checkpoint(name_or_path, revision)
    model = build_model(contents, info.path, model_class)
    fill(model, contents.tensors, info.path, device, dtype)
    return model.eval(), info


def open_checkpoint(name_or_path: Path | str, revision: str | None = None) -> tuple[CheckpointInfo, Contents]:
    """Open a SALMA checkpoint without building the model or reading its weights.

    Args:
        name_or_path, revision: As of `load_checkpoint`.

    Returns:
        Where it came from, and what it holds.

    Raises:
        CheckpointError: As `load_checkpoint`, but for tensors that do not fit the model.
    """
    place, layout, contents = read_contents(resolve(name_or_path, _WANTED, revision))
    return CheckpointInfo(place, layout, contents.step, contents.run_config, contents.provenance), contents


def load_trainer_state(folder: Path | str) -> dict[str, Any]:
    """The optimiser's and scheduler's part of a checkpoint folder.

    Raises:
        CheckpointError: The folder holds none, or the file is broken or unsafe.
    """
    return dict(read_trainer_file(folder)["state"])


def read_trainer_file(folder: Path | str) -> Mapping[str, Any]:
    """All that a checkpoint folder holds beside the plain model.

    Returns:
        ``state`` as of `load_trainer_state`, ``trained`` and ``frozen`` as of `salmacli.checkpoints.adapted`.

    Raises:
        CheckpointError: As of `load_trainer_state`.
    """
    folder = salma_folder(Path(folder)) or Path(folder)
    path = folder / TRAINER
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no trainer state ({TRAINER}), so training cannot go on from it",
            "name a checkpoint that `salma train` wrote",
        )
    content = read_pickle(path)
    if not isinstance(content, Mapping) or content.get("format") != TRAINER_FORMAT:
        raise CheckpointError(f"{path} is not a trainer state of SALMA", "name a checkpoint that `salma train` wrote")
    check_schema(content, path)
    return content


def read_contents(path: Path) -> tuple[Path, Layout, Contents]:
    """Open a SALMA checkpoint of any container without building the model or reading the weights.

    Returns:
        The folder or file that holds it, its layout, and what it holds.

    Raises:
        CheckpointError: As `load_checkpoint`, but for tensors that do not fit the model.
    """
    layout = detect(path)
    if layout is Layout.SALMA_FOLDER:
        folder = salma_folder(path) or path
        return folder, layout, _read_folder(folder)
    if layout is Layout.SALMA_PTH:
        return path, layout, _read_pth(path)
    if layout is Layout.SALMA_ADAPTER:
        from salmacli.checkpoints.adapters import contents_of_adapter  # reads its base, maybe by this function

        folder = salma_folder(path, ADAPTER_FORMAT) or path
        return folder, layout, contents_of_adapter(folder)
    if layout in (Layout.UNKNOWN, Layout.SALMA_BARE, Layout.SALMA_TRAINER):
        raise CheckpointError(f"{path} is a {layout.value}", "name a SALMA checkpoint folder or a converted .pth")
    raise CheckpointError(
        f"{path} is not a SALMA checkpoint but a {layout.value}", f"make one of it first: salma convert {path}"
    )


def config_of(contents: Contents, place: Path) -> ModelConfig:
    """The model's config.

    Raises:
        CheckpointError: It is none that this SALMA knows.
    """
    try:
        return ModelConfig.model_validate(contents.model)
    except ValidationError as error:
        raise CheckpointError(
            f"{place}: its model config does not fit this SALMA ({first_fault(error, 'model')})",
            "use the SALMA version that wrote it",
        ) from error


def build_model(contents: Contents, place: Path, model_class: type[Model] = Salma) -> Model:  # type: ignore[assignment]
    """A model as the checkpoint's config says, with the checkpoint's tokenizer and without memory for its tensors."""
    config = config_of(contents, place)
    tokenizer = read_tokenizer(contents.tokenizer, place)
    try:
        return cast(Model, empty_model(config, tokenizer, model_class))
    except Exception as error:  # transformers raises whatever the fault leads to
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{place}: its model config makes no model ({why})", "use the SALMA version that wrote it, or copy it again"
        ) from error


@torch.no_grad()
def fill(
    model: nn.Module,
    tensors: Mapping[str, LazyTensor],
    place: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Give an empty model its tensors, each read straight to where and what it will be.

    Besides the model itself there is never more than one tensor in memory.

    Args:
        model: Of `build_model`; every tensor on both sides must have a partner of its shape.
        tensors: By the model's names; of tied ones any.
        place: Where they come from, for messages.
        device, dtype: Of the model's parameters. Buffers are tables of positions, which lose digits that count, so they
            are float32 at least; integers stay what they are.

    Raises:
        CheckpointError: Some do not fit; the first few of each kind are named and all are counted.
    """
    wanted, aliases = untied(model)
    for name, lazy in fitted(tensors, model, str(place)).items():
        parameter = isinstance(wanted[name], nn.Parameter)
        floating = dtype if parameter else torch.promote_types(dtype, torch.float32)
        kind = floating if lazy.dtype.is_floating_point else lazy.dtype
        tensor = lazy.read().to(device, kind, copy=True)  # a copy, not a window into a file that may change
        if parameter:
            tensor = nn.Parameter(tensor, requires_grad=wanted[name].requires_grad)
        for path in (name, *(alias for alias, first in aliases.items() if first == name)):
            owner, _, leaf = path.rpartition(".")
            module = model.get_submodule(owner)
            kept: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
            kept[leaf] = tensor
    model.to(device)  # what no file holds: tables that were computed


def _read_folder(folder: Path) -> Contents:
    header = read_config(folder)
    check_schema(header, folder / CONFIG)
    return _contents(header, files_of(folder), open_safetensors(folder), folder / CONFIG)


def _read_pth(path: Path) -> Contents:
    content = open_pickle(path)
    check_schema(content, path)
    files = content.get("tokenizer")
    if not isinstance(files, Mapping) or not all(isinstance(text, str) for text in files.values()):
        raise CheckpointError(f"{path}: tokenizer is not a mapping of texts", "convert it again with salma convert")
    if strange := [str(name) for name in files if name not in FILES]:
        raise CheckpointError(
            f"{path}: {strange[0]!r:.80} is no file of a tokenizer", "convert it again with salma convert"
        )
    tensors = lazy_state_dict(content.get("state_dict"), path)
    return _contents(content, {name: text.encode("utf-8") for name, text in files.items()}, tensors, path)


def _contents(
    header: Mapping[str, Any], tokenizer: dict[str, bytes], tensors: Mapping[str, LazyTensor], where: Path
) -> Contents:
    step, model, run_config = header.get("step"), header.get("model"), header.get("run_config", {})
    provenance = header.get("provenance", {})
    if not isinstance(step, int) or not all(isinstance(part, Mapping) for part in (model, run_config, provenance)):
        raise CheckpointError(f"{where} lacks step, model or run_config", "save or convert the checkpoint again")
    return Contents(step, cast("Mapping[str, Any]", model), run_config, tokenizer, dict(tensors), provenance)
