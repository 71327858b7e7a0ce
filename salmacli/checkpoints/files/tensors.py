"""Safetensors, read and written one tensor at a time, in one file or in shards."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.serialization import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salmacli.checkpoints.files.disk import room
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.config.files import read_json, safe_name
from salmacli.errors import CheckpointError, DataError

WEIGHTS = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000  # what the Hugging Face hub recommends

# The format's names of the types, in the order in which its own library stores them: the widest first, so that every
# tensor begins at a multiple of its element's size.
_DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}
_SHARD = re.compile(r".+-\d{5}-of-\d{5}$")


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Outlines of the tensors of a file, or of a folder with one file or with shards and their index.

    Args:
        path: A ``.safetensors`` file, or a folder with ``model.safetensors`` or ``*.safetensors.index.json``.

    Raises:
        CheckpointError: A file is missing, cut off or of another kind; index and shards contradict each other.
    """
    if not path.is_dir():
        return _open_file(path)
    index = index_of(path, "safetensors")
    if index is not None:
        return gather_shards(index, _open_file)
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        files = [file for file in files if file.name == WEIGHTS]
    if not files:
        raise CheckpointError(f"{path} holds no {WEIGHTS} and no index of shards", "name a folder that holds a model")
    if _SHARD.match(files[0].stem):
        raise CheckpointError(f"{path} holds the shard {files[0].name} without its index", "copy or download all of it")
    return _open_file(files[0])


def index_of(folder: Path, kind: str) -> Path | None:
    """The index of a folder's ``*.safetensors`` or ``*.bin`` shards, if it has one.

    Raises:
        CheckpointError: There is more than one, or the weights are there in one piece, too.
    """
    found = sorted(folder.glob(f"*.{kind}.index.json"))
    if not found:
        return None
    whole = folder / found[0].name.removesuffix(".index.json")
    if len(found) > 1 or whole.exists():
        rival = found[1] if len(found) > 1 else whole
        raise CheckpointError(f"{folder} holds both {found[0].name} and {rival.name}", "remove the one that is stale")
    return found[0]


def gather_shards(index: Path, open_one: Callable[[Path], dict[str, LazyTensor]]) -> dict[str, LazyTensor]:
    """Outlines of the tensors of all shards, each from the shard that the index says and from no other.

    Args:
        index: ``{"weight_map": {tensor: file}}``.
        open_one: Path of a shard → name → LazyTensor.
    """
    weight_map = read_index(index)
    by_file: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        by_file.setdefault(safe_name(file, str(index)), set()).add(name)
    found: dict[str, LazyTensor] = {}
    for file, names in sorted(by_file.items()):
        if not (index.parent / file).is_file():
            raise CheckpointError(
                f"{index.parent} lacks the shard {file} ({len(names)} tensors)", "copy or download it again"
            )
        tensors = open_one(index.parent / file)
        for names_, what in (
            (names - tensors.keys(), "lacks"),
            (tensors.keys() - names, "holds, unknown to the index,"),
        ):
            if names_:
                raise CheckpointError(
                    f"{index.parent / file} {what} {first_few(names_)}",
                    f"{index.name} and the shards are not of one model: copy or download them again",
                )
        found |= tensors
    pattern = f"*-of-*{Path(next(iter(by_file), '')).suffix}"
    if strays := {file.name for file in index.parent.glob(pattern) if _SHARD.match(file.stem)} - by_file.keys():
        raise CheckpointError(
            f"{index} does not know {first_few(strays)} beside it", "remove the shards that are stale"
        )
    return {name: found[name] for name in weight_map}


def read_index(index: Path) -> dict[str, str]:
    """Tensor name → file name.

    Raises:
        CheckpointError: It is no index.
    """
    try:
        weight_map = read_json(index)["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards", "download it again") from error


def first_few(names: Any, shown: int = 4) -> str:
    """How many there are and the first few by name, for messages."""
    ordered = sorted(names)
    more = ", …" if len(ordered) > shown else ""
    return f"{len(ordered)} tensor{'s' if len(ordered) > 1 else ''} ({', '.join(ordered[:shown])}{more})"


def _open_file(path: Path) -> dict[str, LazyTensor]:
    try:
        with safe_open(str(path), framework="pt") as file:  # checks that the header's sizes are the file's
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {
                name: LazyTensor(
                    tuple(one.get_shape()),
                    _dtype(one.get_dtype(), f"{path}: {name}"),
                    partial(_read, path, name),
                    f"{path}: {name}",
                )
                for name, one in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise broken(path, error) from error


def _read(path: Path, name: str) -> Tensor:
    try:
        # Opened for each tensor, which takes a tenth of a millisecond: a mapping that stayed would keep every page
        # that was ever read in the process's memory.
        with safe_open(str(path), framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise broken(path, error) from error


def _dtype(code: str, where: str) -> torch.dtype:
    if code not in _DTYPES:
        raise CheckpointError(
            f"{where} is of type {code}, which SALMA does not read", f"types are {', '.join(_DTYPES)}"
        )
    return _DTYPES[code]


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write one file, holding one tensor at a time in memory.

    The library's own writer wants them all at once. Equal tensors give equal bytes, in whatever order they come.

    Raises:
        CheckpointError: The disk is full.
    """
    ordered = sorted(tensors, key=lambda name: (_RANKS[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        one = tensors[name]
        start, end = end, end + one.bytes
        header[name] = {"dtype": _CODES[one.dtype], "shape": list(one.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    room(path.parent, len(text) + 8 + end)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in ordered:
            file.write(raw_bytes(read_as_announced(name, tensors[name])))


def write_shards(folder: Path, tensors: Mapping[str, LazyTensor], max_shard_bytes: int = MAX_SHARD_BYTES) -> list[Path]:
    """Write ``model.safetensors``, or shards and their index where that would be larger than a shard may be.

    Args:
        folder: Exists already.
        tensors: Read and written one after the other.
        max_shard_bytes: A single larger tensor gets a shard of its own.

    Returns:
        The files with weights.

    Raises:
        CheckpointError: The disk lacks the room; nothing is written then.
    """
    room(folder, sum(tensor.bytes for tensor in tensors.values()))
    split = split_state_dict_into_shards_factory(
        dict(sorted(tensors.items())),
        get_storage_size=lambda tensor: tensor.bytes,
        get_storage_id=lambda tensor: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        write_safetensors(folder / file, {name: tensors[name] for name in names})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        (folder / f"{WEIGHTS}.index.json").write_text(text, encoding="utf-8")
    return [folder / file for file in split.filename_to_tensors]


def read_as_announced(name: str, lazy: LazyTensor) -> Tensor:
    """Read a tensor onto the CPU; what comes must be what was announced, because files are laid out by that."""
    tensor = lazy.read().detach().cpu().contiguous()
    if (tuple(tensor.shape), tensor.dtype) != (tuple(lazy.shape), lazy.dtype):
        raise RuntimeError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {lazy.dtype} {tuple(lazy.shape)}")
    return tensor


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, in place."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def broken(path: Path, error: Exception) -> CheckpointError:
    """The one line for a file that cannot be read."""
    if not path.exists():
        return CheckpointError(f"{path} is missing", "check the path")
    if path.stat().st_size == 0:
        return CheckpointError(f"{path} is empty", "copy or save it again")
    size, why = path.stat().st_size, str(error).strip()
    reason = f"; {why.splitlines()[0][:120]}" if why else ""
    return CheckpointError(f"{path} is cut off or no checkpoint ({size} bytes{reason})", "copy or save it again")
