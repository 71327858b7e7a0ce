"""Model and trainer → files, whole or not at all.

A checkpoint folder::

    config.json             {"schema": 1, "format": "salma", "step", "model", "run_config", "provenance", …}
    model.safetensors       every tensor of the model; tied ones once. Large ones: model-*-of-*.safetensors and an index
    tokenizer*.json …       as transformers writes them
    processor_config.json   sizes and normalisation of the frames, for other programs: SALMA knows them from config.json
    README.md               the model card
    ckpt.pth                optimiser, schedule, random states, and what trains if model.safetensors holds it merged or
                            averaged: what only --resume needs. Optional.
"""

from __future__ import annotations

import json
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from salmacli import __version__
from salmacli.checkpoints.adapted import plain_tensors, trained_tensors
from salmacli.checkpoints.card import CARD, card
from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.files.disk import replacing, room
from salmacli.checkpoints.files.pickles import read_pickle
from salmacli.checkpoints.files.tensors import MAX_SHARD_BYTES, WEIGHTS, raw_bytes, read_as_announced, write_shards
from salmacli.checkpoints.layouts import CONFIG, FORMAT, SCHEMA, TRAINER, TRAINER_FORMAT, salma_folder
from salmacli.checkpoints.processor import PROCESSOR, processor_of
from salmacli.checkpoints.sources.tokenizers import tokenizer_files
from salmacli.config.files import safe_name
from salmacli.errors import CheckpointError, UsageError


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    *,
    config: Mapping[str, Any],
    step: int,
    trainer_state: Mapping[str, Any] | None = None,
    weights: Weights | None = None,
    folders: Mapping[str, Path] | None = None,
) -> None:
    """Write a checkpoint folder; an older one of the same name is replaced only when the new one is complete.

    Args:
        folder: Usually ``runs/<name>/checkpoints/step-<N>``.
        model: A ``Salma``, with adapters or without, itself and not what DDP or FSDP make of it.
        config: The whole run's config as plain data.
        step: Optimiser steps made.
        trainer_state: Plain data and tensors; None writes no ``ckpt.pth``.
        weights: What is saved; the model's own if not given.
        folders: Finished folders that are moved into the checkpoint, by their names there.

    Raises:
        CheckpointError: The disk lacks the room.
        TypeError: ``trainer_state`` holds an object that could not be read back safely.
    """
    info = getattr(model, "info", None)  # of a model that a training started from
    provenance = info.provenance if info is not None else {}
    weights = weights or Weights()
    shown = {**(weights.state or {}), **(weights.averages or {})}
    contents = contents_of(model, config=config, step=step, provenance=provenance, state=shown)
    beside = None
    if trainer_state is not None:
        trained = trained_tensors(model, weights.state, everything=weights.averages is not None)
        beside = {"state": dict(trainer_state), "trained": trained, "frozen": weights.frozen}

    def move_in(part: Path) -> None:
        for name, place in (folders or {}).items():
            place.rename(part / name)

    write_folder(folder, contents, beside, check=move_in)


@dataclass(frozen=True)
class Weights:
    """What a checkpoint is made of, where that is not what the model's parameters are.

    Attributes:
        state: The whole model's tensors by name, gathered from all devices; None: the model's own.
        averages: Moving averages of what trains, by name: they become the model's weights, and those that train lie
            beside them.
        frozen: `salmacli.checkpoints.adapted.fingerprint` of the model.
    """

    state: Mapping[str, Tensor] | None = None
    averages: Mapping[str, Tensor] | None = None
    frozen: str | None = None


def contents_of(
    model: nn.Module,
    *,
    config: Mapping[str, Any],
    step: int,
    provenance: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Contents:
    """A model's tensors (not copied: they are read when they are written), config and tokenizer.

    Args:
        model, config, step: As of `save_checkpoint`.
        provenance: Of what it was made.
        state: Tensors by name that stand in for the model's own.
    """
    return Contents(
        step=step,
        model=model.config.model_dump(mode="json"),  # type: ignore[union-attr, operator]
        run_config=dict(config),
        tokenizer=tokenizer_files(model.tokenizer),  # type: ignore[arg-type]
        tensors=plain_tensors(model, state),
        provenance=provenance or {},
    )


def write_folder(
    folder: Path,
    contents: Contents,
    beside: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint folder beside its place, sync it to the disk, then rename it.

    Args:
        folder: An older checkpoint there is replaced.
        contents: Its tensors are read and written one after the other.
        beside: What ``ckpt.pth`` holds: ``state``, ``trained`` and ``frozen``; None writes none.
        max_shard_bytes: Larger models are cut into files of at most so many bytes.
        check: Gets the finished folder before it takes its place, and raises if it must not.

    Raises:
        CheckpointError: The disk lacks the room.
        UsageError: What stands in its place is no checkpoint, so replacing it would lose something else.
    """
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and (salma_folder(folder) is None or not folder.is_dir()):
        raise UsageError(f"{folder} is there and is no SALMA checkpoint", "give another place")
    room(folder, _bytes(contents.tensors.values()) + _bytes(_tensors(beside)))
    with replacing(folder) as part:
        files = write_shards(part, contents.tensors, max_shard_bytes)
        for name, data in contents.tokenizer.items():
            (part / safe_name(name, "the tokenizer's files")).write_bytes(data)
        if beside is not None:
            _write_trainer_file(part / TRAINER, beside, contents.step)
        header = {**_header(contents), "weights": WEIGHTS if len(files) == 1 else f"{WEIGHTS}.index.json"}
        texts = {CONFIG: _json(header), PROCESSOR: _json(processor_of(contents)), CARD: card(contents)}
        for name, text in texts.items():
            (part / name).write_text(text, encoding="utf-8")
        if check is not None:
            check(part)


def write_pth(path: Path, contents: Contents, check: Callable[[Path], None] | None = None) -> None:
    """Write everything into one ``.pth`` of plain data, atomically, holding one tensor at a time in memory.

    PyTorch writes the archive around tensors without memory; their bytes and checksums then follow one by one.

    Args:
        path: An older file there is replaced.
        contents: Its tensors are read and written one after the other.
        check: As of `write_folder`.

    Raises:
        CheckpointError: The disk lacks the room.
    """
    room(path, _bytes(contents.tensors.values()))
    with FakeTensorMode():
        outlines = {name: torch.empty(lazy.shape, dtype=lazy.dtype) for name, lazy in contents.tensors.items()}
    content = {
        **_header(contents),
        "tokenizer": {name: data.decode("utf-8") for name, data in contents.tokenizer.items()},
        "state_dict": outlines,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            with torch.serialization.skip_data(materialize_fake_tensors=True):
                torch.save(content, file)
            file.flush()
            for (name, lazy), record in zip(contents.tensors.items(), _records(file), strict=True):
                record.write(file, raw_bytes(read_as_announced(name, lazy)))
            file.flush()
            os.fsync(file.fileno())
        Path(part).chmod(0o644)
        if check is not None:
            check(Path(part))
        os.replace(part, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(part)
        raise


@dataclass(frozen=True)
class _Record:
    """One tensor in PyTorch's archive.

    Attributes:
        begin: where its bytes begin.
        listed: where its entry in the archive's directory begins.
    """

    begin: int
    listed: int

    def write(self, file: IO[bytes], data: memoryview) -> None:
        """Put the bytes in their place, and their checksum into the two places that the zip format has for it."""
        checksum = struct.pack("<I", zlib.crc32(data))
        file.seek(self.begin)
        file.write(data)
        if file.read(4) == b"PK\x07\x08":  # what follows a record whose checksum was not known when it began
            file.seek(self.begin + len(data) + 4)
            file.write(checksum)
        file.seek(self.listed + 16)
        file.write(checksum)


def _records(file: IO[bytes]) -> list[_Record]:
    """The tensors' records, in the order in which they were saved."""
    found: dict[int, _Record] = {}
    with zipfile.ZipFile(file) as archive:
        listed = archive.start_dir  # type: ignore[attr-defined]
        for entry in archive.infolist():
            if number := re.fullmatch(r"[^/]+/data/(\d+)", entry.filename):
                file.seek(entry.header_offset + 26)  # of the zip format: lengths of a name and of an extra field
                begin = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
                found[int(number[1])] = _Record(begin, listed)
            listed += 46 + len(entry.filename.encode()) + len(entry.extra) + len(entry.comment)
    return [found[number] for number in sorted(found)]


def _header(contents: Contents) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "format": FORMAT,
        "salma": __version__,
        "step": contents.step,
        "model": dict(contents.model),
        "run_config": dict(contents.run_config),
        "provenance": dict(contents.provenance),
    }


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(
        tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else tensor.bytes for tensor in tensors
    )


def _tensors(part: Any) -> Iterable[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, Mapping | list | tuple):
        for value in part.values() if isinstance(part, Mapping) else part:
            yield from _tensors(value)


def _write_trainer_file(path: Path, beside: Mapping[str, Any], step: int) -> None:
    note = f"The model's weights lie beside this file in {WEIGHTS}."
    torch.save({"format": TRAINER_FORMAT, "schema": SCHEMA, "note": note, "step": step, **beside}, path)
    try:  # now, while the training still runs, not at --resume
        read_pickle(path)
    except CheckpointError as error:
        raise TypeError(f"the trainer's state holds more than plain data and tensors: {error}") from error
