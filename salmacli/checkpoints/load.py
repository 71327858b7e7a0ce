"""Files → model and trainer, strictly: every tensor has its place, or the load says which has not."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from salmacli.checkpoints.contents import Contents, untied
from salmacli.checkpoints.layouts import (
    CONFIG,
    SCHEMA,
    TRAINER,
    TRAINER_FORMAT,
    WEIGHTS,
    Layout,
    broken,
    detect,
    read_pickle,
    salma_folder,
)
from salmacli.config.files import read_json, safe_name, sha256
from salmacli.config.schema import ModelConfig
from salmacli.errors import CheckpointError, DataError
from salmacli.models.salma import Salma

_SHOWN = 4  # names per kind of fault in a message


@dataclass(frozen=True)
class CheckpointInfo:
    """Where a model came from.

    Attributes:
        path: The checkpoint folder, or the ``.pth``.
        layout: Its layout.
        step: Optimiser steps that led to it.
        run_config: The config of the run that made it, as plain data.
    """

    path: Path
    layout: Layout
    step: int
    run_config: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """``{"path", "step", "sha256"}`` for results; the hash is of the file that holds the weights."""
        weights = self.path / WEIGHTS if self.path.is_dir() else self.path
        return {"path": str(self.path), "step": self.step, "sha256": sha256(weights)}


def load_checkpoint(path: Path | str, device: str | torch.device = "cpu") -> tuple[Salma, CheckpointInfo]:
    """Build the model that a SALMA checkpoint describes and fill it.

    Args:
        path: The folder, its ``ckpt.pth`` or ``model.safetensors``, or one exported ``.pth``.
        device: Where the model goes, e.g. ``cuda``.

    Returns:
        The model in evaluation mode, and where it came from.

    Raises:
        CheckpointError: The file is missing, broken, unsafe, of another model, or its tensors do not fit.
    """
    path = Path(path)
    place, layout, contents = read_contents(path)
    model = build_model(contents, place)
    fill(model, contents.tensors, place)
    info = CheckpointInfo(place, layout, contents.step, contents.run_config)
    return model.to(device).eval(), info


def load_trainer_state(folder: Path | str) -> dict[str, Any]:
    """The optimiser's and scheduler's part of a checkpoint folder.

    Raises:
        CheckpointError: The folder holds none, or the file is broken or unsafe.
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
    _check_schema(content, path)
    return dict(content["state"])


def read_contents(path: Path) -> tuple[Path, Layout, Contents]:
    """Read a SALMA checkpoint of either container without building the model.

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
    if layout in (Layout.UNKNOWN, Layout.SALMA_BARE, Layout.SALMA_TRAINER):
        raise CheckpointError(f"{path} is a {layout.value}", "name a SALMA checkpoint folder or an exported .pth")
    raise CheckpointError(
        f"{path} is not a SALMA checkpoint but a {layout.value}; converting this layout comes later",
        "name a SALMA checkpoint folder or an exported .pth",
    )


def build_model(contents: Contents, place: Path) -> Salma:
    """A model as the checkpoint's config says, with fresh weights and the checkpoint's tokenizer."""
    try:
        config = ModelConfig.model_validate(contents.model)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"{place}: its model config does not fit this SALMA (model.{key}: {first['msg']})",
            "use the SALMA version that wrote it",
        ) from error
    return Salma(config, read_tokenizer(contents, place))


def read_tokenizer(contents: Contents, place: Path) -> Any:
    """The checkpoint's tokenizer, from its files alone."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in contents.tokenizer.items():
            (Path(folder) / safe_name(name, f"{place}: tokenizer")).write_bytes(data)
        try:
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{place}: its tokenizer cannot be read ({error})", "save or copy it again"
            ) from error


def fill(model: nn.Module, tensors: Mapping[str, Tensor], place: Path) -> None:
    """Copy tensors into the model; every one on both sides must have a partner of its shape.

    Raises:
        CheckpointError: Some have not; the first few of each kind are named and all are counted.
    """
    wanted, aliases = untied(model)
    given = {aliases.get(name, name): tensor for name, tensor in tensors.items()}
    faults = []
    if missing := sorted(wanted.keys() - given.keys()):
        faults.append(_fault(missing, "missing"))
    if unexpected := sorted(given.keys() - wanted.keys()):
        faults.append(_fault(unexpected, "unexpected"))
    both = sorted(wanted.keys() & given.keys())
    if shapes := [name for name in both if wanted[name].shape != given[name].shape]:
        told = [f"{name} {tuple(given[name].shape)} for {tuple(wanted[name].shape)}" for name in shapes[:_SHOWN]]
        faults.append(_fault(shapes, "of another shape", told))
    if faults:
        raise CheckpointError(f"{place} does not fit its own config: {'; '.join(faults)}", "it is of another model")
    with torch.no_grad():
        for name in both:
            wanted[name].copy_(given[name])


def _read_folder(folder: Path) -> Contents:
    try:
        header = read_json(folder / CONFIG)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    _check_schema(header, folder / CONFIG)
    try:
        tensors = load_file(str(folder / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise broken(folder / WEIGHTS, error) from error
    others = (CONFIG, WEIGHTS, TRAINER)
    tokenizer = {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name not in others and not file.name.startswith(".")
    }
    return _contents(header, tokenizer, tensors, folder / CONFIG)


def _read_pth(path: Path) -> Contents:
    content = read_pickle(path)
    _check_schema(content, path)
    tensors = content.get("state_dict")
    files = content.get("tokenizer")
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path}: state_dict is not a mapping of tensors", "export it again with salma convert")
    if not isinstance(files, Mapping) or not all(isinstance(text, str) for text in files.values()):
        raise CheckpointError(f"{path}: tokenizer is not a mapping of texts", "export it again with salma convert")
    return _contents(content, {name: text.encode("utf-8") for name, text in files.items()}, tensors, path)


def _contents(
    header: Mapping[str, Any], tokenizer: dict[str, bytes], tensors: Mapping[str, Tensor], where: Path
) -> Contents:
    step, model, run_config = header.get("step"), header.get("model"), header.get("run_config", {})
    if not isinstance(step, int) or not isinstance(model, Mapping) or not isinstance(run_config, Mapping):
        raise CheckpointError(f"{where} lacks step, model or run_config", "save or convert the checkpoint again")
    return Contents(step, model, run_config, tokenizer, dict(tensors))


def _check_schema(header: Mapping[str, Any], where: Path) -> None:
    schema = header.get("schema")
    if schema != SCHEMA:
        raise CheckpointError(
            f"{where} has schema {schema!r}, this SALMA reads {SCHEMA}", "use the SALMA that wrote it"
        )


def _fault(names: list[str], what: str, told: list[str] | None = None) -> str:
    shown = ", ".join(told or names[:_SHOWN])
    more = ", …" if len(names) > _SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} {what} ({shown}{more})"
