"""DeepSpeed's checkpoint folders: one file of weights, or weights in pieces that the ranks hold, ZeRO stages 0 to 3.

A folder ``<tag>`` holds, for R ranks::

    mp_rank_00_model_states.pt                          stages 0–2: the weights, in the type that was trained in
    zero_pp_rank_<r>_mp_rank_00_model_states.pt         stage 3: shapes, buffers, rank r's piece of each frozen tensor
    [bf16_]zero_pp_rank_<r>_mp_rank_00_optim_states.pt  stages 1–3: rank r's piece of the float32 masters, flat

Source: the format as DeepSpeed 0.19's engine writes it and its ``zero_to_fp32`` reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.pickles import lazy_state_dict, open_pickle
from salmacli.checkpoints.files.tensors import first_few
from salmacli.errors import CheckpointError

_MODEL, _OPTIMIZER = "*mp_rank_*_model_states.pt", "*zero_pp_rank_*_optim_states.pt"
_MEND = "copy the whole folder again; every rank writes a file of its own"

Shapes = Mapping[str, tuple[int, ...]]


def deepspeed_folder(path: Path) -> Path | None:
    """The folder of DeepSpeed's files that ``path`` is, lies in, or leads to by ``latest`` or as its only one.

    Returns:
        None where there is none.

    Raises:
        CheckpointError: It leads to several.
    """
    if path.match(_MODEL) or path.match(_OPTIMIZER):
        return path.parent
    if any(path.glob(_MODEL)):
        return path
    latest = path / "latest"
    if latest.is_file():
        tag = latest.read_text(encoding="utf-8", errors="replace").strip()
        if "/" not in tag and any((path / tag).glob(_MODEL)):
            return path / tag
        raise CheckpointError(f"{latest} names {tag!r}, and there is no such checkpoint", "name its folder itself")
    found = sorted({file.parent for file in path.glob(f"*/{_MODEL}")})
    if len(found) > 1:
        raise CheckpointError(f"{path} holds {len(found)} DeepSpeed checkpoints", f"name one, such as {found[-1]}")
    return found[0] if found else None


def open_deepspeed(path: Path) -> dict[str, LazyTensor]:
    """Outlines of a DeepSpeed checkpoint's tensors, by the names that the trained module gave them.

    Trained tensors are the float32 masters where the ranks' files lie beside the weights, as `zero_to_fp32` would give
    them; frozen ones and buffers come as they were stored.

    Raises:
        CheckpointError: A rank's file is missing or left over, or the pieces do not make up the tensors.
    """
    folder = deepspeed_folder(path)
    if folder is None:
        raise CheckpointError(f"{path} holds no DeepSpeed checkpoint", "name a folder with *_model_states.pt")
    model_files = _by_rank(folder, _MODEL)
    states = [open_pickle(file) for file in model_files]
    first = states[0]
    if not isinstance(first, dict) or not isinstance(first.get("module"), dict):
        raise CheckpointError(f"{model_files[0]} holds no module", "name a folder that DeepSpeed saved")
    if int(first.get("mp_world_size", 1)) > 1 or any("mp_rank_00" not in file.name for file in model_files):
        raise CheckpointError(f"{folder} is of a tensor-parallel run", "gather it with DeepSpeed's own tools first")
    module = lazy_state_dict(first["module"], model_files[0])
    optimizer_files = _by_rank(folder, _OPTIMIZER)
    sharded = model_files[0].name.startswith("zero_")
    if not optimizer_files:
        if sharded:
            raise CheckpointError(f"{folder} lacks the ranks' {_OPTIMIZER.strip('*')} with the weights", _MEND)
        return module
    masters = [_Masters.of(file) for file in optimizer_files]
    stage, ranks = masters[0].stage, masters[0].ranks
    _check_ranks(folder, optimizer_files, ranks)
    shapes = [dict(group) for group in first.get("param_shapes", [])]
    if stage == 3:
        _check_ranks(folder, model_files, ranks)
        trained = _stage3(folder, [rank.groups for rank in masters], shapes)
        buffers = {name: module[name] for name in first.get("buffer_names", []) if name in module}
        found = {**buffers, **_frozen(folder, first.get("frozen_param_shapes") or {}, states), **trained}
    else:
        found = {**module, **_stage2(folder, masters, shapes)}
    found |= {name: found[same] for name, same in (first.get("shared_params") or {}).items() if same in found}
    return {**{name: found[name] for name in module if name in found}, **found}


def deepspeed_meta(path: Path) -> Mapping[str, Any]:
    """What the trainer noted in the first file of model states (``meta``); nothing where it noted nothing.

    Raises:
        CheckpointError: There is no DeepSpeed checkpoint, or that file is broken.
    """
    folder = deepspeed_folder(path)
    if folder is None:
        raise CheckpointError(f"{path} holds no DeepSpeed checkpoint", "name a folder with *_model_states.pt")
    files = _by_rank(folder, _MODEL)
    content = open_pickle(files[0]) if files else None
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    def rank(file: Path) -> int:
        number = re.search(r"zero_pp_rank_(\d+)_", file.name)
        return int(number[1]) if number else 0

    return sorted(folder.glob(pattern), key=rank)


def _check_ranks(folder: Path, files: Sequence[Path], ranks: int) -> None:
    there = [int(found[1]) for file in files if (found := re.search(r"zero_pp_rank_(\d+)_", file.name))]
    kind = files[0].name.split("mp_rank_00_")[-1]
    if missing := sorted(set(range(ranks)) - set(there)):
        told = ", ".join(str(rank) for rank in missing[:8])
        raise CheckpointError(f"{folder} lacks the {kind} of rank {told} of {ranks}", _MEND)
    if len(there) != ranks:
        raise CheckpointError(f"{folder} holds {len(there)} files {kind} of {ranks} ranks", "remove the stale ones")


@dataclass(frozen=True)
class _Masters:
    """One rank's float32 weights.

    Attributes:
        stage: of ZeRO.
        ranks: how many there are.
        groups: flat tensors.
        paddings: stages 1 and 2: per group, unused numbers after each tensor; empty where the file knows of none.
    """

    stage: int
    ranks: int
    groups: list[LazyTensor]
    paddings: list[list[int]]

    @classmethod
    def of(cls, file: Path) -> _Masters:
        content = open_pickle(file)
        state = content.get("optimizer_state_dict") if isinstance(content, dict) else None
        if not isinstance(state, dict) or "zero_stage" not in state or "partition_count" not in state:
            raise CheckpointError(f"{file} is no ZeRO optimizer state", "name a folder that DeepSpeed saved")
        stage, count = int(state["zero_stage"]), state["partition_count"]
        groups = state.get("fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups")
        if not isinstance(groups, list) or not all(isinstance(group, LazyTensor) for group in groups):
            raise CheckpointError(f"{file} holds no float32 weights", "save the checkpoint with the optimizer's state")
        ranks = max(count) if isinstance(count, list) else int(count)
        return cls(stage, ranks, groups, state.get("param_alignment_paddings") or [])


def _stage2(folder: Path, masters: Sequence[_Masters], shapes: Sequence[Shapes]) -> dict[str, LazyTensor]:
    """Per group, the ranks' pieces joined are all its tensors, one after the other."""
    if any(len(rank.groups) != len(shapes) for rank in masters):
        groups = len(masters[0].groups)
        raise CheckpointError(f"{folder}: {len(shapes)} groups of shapes for {groups} groups of weights", _MEND)
    found: dict[str, LazyTensor] = {}
    paddings = masters[0].paddings or [[0] * len(group) for group in shapes]
    for number, group in enumerate(shapes):
        flat = [rank.groups[number] for rank in masters]
        next_ = 0
        for (name, shape), padding in zip(group.items(), paddings[number], strict=True):
            start, end = next_, next_ + math.prod(shape)
            next_ = end + padding
            found[name] = _lazy(folder, name, shape, flat[0].dtype, partial(_slice, flat, start, end))
        total = sum(math.prod(piece.shape) for piece in flat)
        unit = 2 * len(masters)  # the end of a group is padded to it
        if -(-next_ // unit) != -(-total // unit):
            raise CheckpointError(f"{folder}: group {number} has {total} numbers for {next_} of its shapes", _MEND)
    return found


def _stage3(folder: Path, pieces: Sequence[Sequence[LazyTensor]], shapes: Sequence[Shapes]) -> dict[str, LazyTensor]:
    """Each tensor is cut into as many equal pieces as there are ranks; a rank holds its pieces one after the other."""
    found: dict[str, LazyTensor] = {}
    end = 0
    for group in shapes:
        for name, shape in group.items():
            start, end = end, end - (-math.prod(shape) // len(pieces))
            read = partial(_gather, pieces, start, end, math.prod(shape))
            found[name] = _lazy(folder, name, shape, pieces[0][0].dtype, read)
    for rank, groups in enumerate(pieces):
        total = sum(math.prod(piece.shape) for piece in groups)
        if total != end:
            raise CheckpointError(f"{folder}: rank {rank} has {total} numbers for {end} of its shapes", _MEND)
    return found


def _frozen(folder: Path, shapes: Shapes, states: Sequence[Mapping[str, Any]]) -> dict[str, LazyTensor]:
    """Stage 3's frozen tensors: one piece per rank's model file."""
    found = {}
    for name, shape in shapes.items():
        pieces = [state.get("frozen_param_fragments", {}).get(name) for state in states]
        if not all(isinstance(piece, LazyTensor) for piece in pieces):
            raise CheckpointError(f"{folder}: not every rank has its piece of {first_few([name])}", _MEND)
        total = sum(math.prod(piece.shape) for piece in pieces)
        if total < math.prod(shape):
            raise CheckpointError(f"{folder}: {name} has {total} numbers for {tuple(shape)}", _MEND)
        found[name] = _lazy(folder, name, shape, pieces[0].dtype, partial(_slice, pieces, 0, math.prod(shape)))
    return found


def _lazy(folder: Path, name: str, shape: Any, dtype: torch.dtype, read: Any) -> LazyTensor:
    size = tuple(int(side) for side in shape)
    return LazyTensor(size, dtype, lambda: read().view(size), f"{folder}: {name}")


def _slice(pieces: Sequence[LazyTensor], start: int, end: int) -> Tensor:
    """A stretch of flat tensors that are laid end to end."""
    return torch.cat(list(_stretch(pieces, start, end)))


def _stretch(pieces: Sequence[LazyTensor], start: int, end: int) -> Iterator[Tensor]:
    begin = 0
    for piece in pieces:
        size = math.prod(piece.shape)
        low, high = max(start - begin, 0), min(end - begin, size)
        if low < high or (start == end and begin == 0):
            yield piece.read().reshape(-1)[low:high]
        begin += size


def _gather(pieces: Sequence[Sequence[LazyTensor]], start: int, end: int, count: int) -> Tensor:
    return torch.cat([_slice(groups, start, end) for groups in pieces])[:count]
