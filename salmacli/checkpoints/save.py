"""Model and trainer → files, whole or not at all.

A checkpoint folder::

    config.json         {"schema": 1, "format": "salma", "step", "model", "run_config", …}
    model.safetensors   every tensor of the model; tied ones once
    tokenizer*.json …   as transformers writes them
    ckpt.pth            optimiser, schedule, random states: what only --resume needs. Optional.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from salmacli import __version__
from salmacli.checkpoints.contents import Contents, untied
from salmacli.checkpoints.layouts import (
    CONFIG,
    FORMAT,
    SCHEMA,
    TRAINER,
    TRAINER_FORMAT,
    WEIGHTS,
    salma_folder,
)
from salmacli.config.files import safe_name
from salmacli.errors import UsageError


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    *,
    config: Mapping[str, Any],
    step: int,
    trainer_state: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder; an older one of the same name is replaced only when the new one is complete.

    Args:
        folder: Usually ``runs/<name>/checkpoints/step-<N>``.
        model: A ``Salma``, not wrapped by DDP or FSDP.
        config: The whole run's config as plain data.
        step: Optimiser steps made.
        trainer_state: Plain data and tensors; None writes no ``ckpt.pth``.

    Raises:
        TypeError: ``trainer_state`` holds an object that could not be read back safely.
    """
    write_folder(folder, contents_of(model, config=config, step=step), trainer_state)


def contents_of(model: nn.Module, *, config: Mapping[str, Any], step: int) -> Contents:
    """Copy a model's tensors, config and tokenizer to the CPU."""
    tensors, _ = untied(model)
    own = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return Contents(
        step=step,
        model=model.config.model_dump(mode="json"),  # type: ignore[union-attr, operator]
        run_config=dict(config),
        tokenizer=_tokenizer_files(model.tokenizer),
        tensors=own,
    )


def write_folder(folder: Path, contents: Contents, trainer_state: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint folder beside its place, sync it to the disk, then rename it.

    Raises:
        UsageError: What stands in its place is no checkpoint, so replacing it would lose something else.
    """
    if folder.exists() and (salma_folder(folder) is None or not folder.is_dir()):
        raise UsageError(f"{folder} is there and is no SALMA checkpoint", "give another place")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        save_file(dict(contents.tensors), str(part / WEIGHTS), metadata={"format": "pt"})
        for name, data in contents.tokenizer.items():
            (part / safe_name(name, "the tokenizer's files")).write_bytes(data)
        if trainer_state is not None:
            _write_trainer_state(part / TRAINER, trainer_state, contents.step)
        (part / CONFIG).write_text(json.dumps(_header(contents), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.chmod(0o755)
        for file in part.iterdir():
            _sync(file)
        _sync(part)
        _swap(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _header(contents: Contents) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "format": FORMAT,
        "salma": __version__,
        "step": contents.step,
        "weights": WEIGHTS,
        "model": dict(contents.model),
        "run_config": dict(contents.run_config),
    }


def _write_trainer_state(path: Path, state: Mapping[str, Any], step: int) -> None:
    note = f"The model's weights lie beside this file in {WEIGHTS}."
    torch.save({"format": TRAINER_FORMAT, "schema": SCHEMA, "note": note, "step": step, "state": dict(state)}, path)
    try:  # now, while the training still runs, not at --resume
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise TypeError(f"the trainer's state holds more than plain data and tensors: {error}") from error


def _tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir()) if file.is_file()}


def _swap(part: Path, folder: Path) -> None:
    """Put ``part`` in the place of ``folder``; a folder with content cannot be renamed over."""
    old: Path | None = None
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
        os.replace(folder, old / "it")
    os.replace(part, folder)
    _sync(folder.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle on a folder to sync
    # Windows syncs only files open for writing.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        with suppress(OSError):  # some network file systems cannot sync folders
            os.fsync(handle)
    finally:
        os.close(handle)
