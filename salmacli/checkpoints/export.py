"""SALMA checkpoint ↔ one ``.pth`` ↔ safetensors folder, with a report and a check of what was written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from salmacli import __version__
from salmacli.checkpoints.contents import Contents, fingerprint_of
from salmacli.checkpoints.layouts import FORMAT, SCHEMA, Layout
from salmacli.checkpoints.load import build_model, fill, read_contents
from salmacli.checkpoints.save import write_folder
from salmacli.errors import CheckpointError, UsageError

Container = Literal["folder", "pth"]

# How many names of a tensor's path make its module in the report, e.g. mllm.model.model.vision_tower.
_DEPTH = {"mllm": 4, "grounding": 2}


@dataclass(frozen=True)
class ModuleRow:
    """One line of the key report."""

    module: str
    tensors: int
    parameters: int
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Export:
    """What a conversion found and made.

    Attributes:
        source: The folder or file that was read.
        layout: Its layout.
        out: What was (or, in a dry run, would be) written.
        step: Optimiser steps that led to the checkpoint.
        fingerprint: SHA-256 over names and bytes of the tensors, the same before and after.
        modules: The key report.
        verified: Read back and found identical; False in a dry run.
    """

    source: Path
    layout: Layout
    out: Path
    step: int
    fingerprint: str
    modules: list[ModuleRow]
    verified: bool


def export(
    path: Path,
    to: Container = "folder",
    out: Path | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> Export:
    """Write a SALMA checkpoint, without the trainer's state, into another container and compare the two.

    Raises:
        CheckpointError: The checkpoint cannot be read, does not fit its config, or came back changed.
        UsageError: ``out`` is there already (without ``force``), or is the checkpoint itself.
    """
    source, layout, contents = read_contents(path)
    out = default_out(source, contents.step, to) if out is None else out
    if out.resolve() == source.resolve():
        raise UsageError(f"{out} is the checkpoint itself", "give another place with --out")
    if out.exists() and not force:
        raise UsageError(f"{out} is there already", "give another place with --out, or --force to replace it")
    if out.exists() and out.is_dir() != (to == "folder"):
        kind = "folder" if out.is_dir() else "file"
        raise UsageError(f"{out} is a {kind} and --force replaces only like by like", "give another place with --out")
    fill(build_model(contents, source), contents.tensors, source)  # a file that no model fits is not worth converting
    found = fingerprint_of(contents.tensors)
    if not dry_run:
        if to == "folder":
            write_folder(out, contents)
        else:
            write_pth(out, contents)
        _verify(out, contents, found)
    return Export(source, layout, out, contents.step, found, key_report(contents.tensors), verified=not dry_run)


def write_pth(path: Path, contents: Contents) -> None:
    """Write everything into one ``.pth`` of plain data, atomically."""
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "salma": __version__,
        "step": contents.step,
        "model": dict(contents.model),
        "run_config": dict(contents.run_config),
        "tokenizer": {name: data.decode("utf-8") for name, data in contents.tokenizer.items()},
        "state_dict": dict(contents.tensors),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        Path(part).chmod(0o644)
        os.replace(part, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(part)
        raise


def fingerprint(path: Path) -> str:
    """SHA-256 over names and bytes of a SALMA checkpoint's tensors, whatever the container.

    Raises:
        CheckpointError: It cannot be read.
    """
    return fingerprint_of(read_contents(path)[2].tensors)


def key_report(tensors: Mapping[str, Tensor]) -> list[ModuleRow]:
    """Tensors, parameters, types and bytes per module, in the order of the file."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(_module(name), []).append(tensor)
    return [
        ModuleRow(
            module=module,
            tensors=len(members),
            parameters=sum(tensor.numel() for tensor in members),
            dtype=", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in members})),
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in members),
        )
        for module, members in groups.items()
    ]


def default_out(source: Path, step: int, to: Container) -> Path:
    """``<run>-step-<N>-salma`` beside a run's checkpoint, ``<name>-salma`` beside any other."""
    if source.parent.name == "checkpoints":
        stem = f"{source.resolve().parent.parent.name}-step-{step}"
    else:
        name = source.resolve().name
        stem = (name if source.is_dir() else source.stem).removesuffix("-salma")
    return source.parent / (f"{stem}-salma" if to == "folder" else f"{stem}-salma.pth")


def _verify(out: Path, contents: Contents, found: str) -> None:
    _, _, back = read_contents(out)
    if fingerprint_of(back.tensors) != found:
        raise CheckpointError(f"{out} came back changed from the disk", "check the disk and convert again")
    for part in ("step", "model", "run_config", "tokenizer"):
        if getattr(back, part) != getattr(contents, part):
            raise CheckpointError(f"{out}: its {part} came back changed", "check the disk and convert again")


def _module(name: str) -> str:
    """The part of the model that a tensor belongs to, e.g. ``cma`` or ``grounding.memory_encoder``."""
    parts = name.split(".")[:-1] or [name]
    return ".".join(parts[: _DEPTH.get(parts[0], 1)])
