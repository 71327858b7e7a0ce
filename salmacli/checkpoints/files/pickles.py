"""PyTorch's pickles, checked before they are read and read tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salmacli.checkpoints.files import pickle_guard
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import broken, gather_shards, index_of
from salmacli.errors import CheckpointError

_AT_ONCE = 256 << 20  # bytes that are read through one mapping before it is made anew


def open_pickle(path: Path) -> Any:
    """Read a PyTorch file of plain data; nothing in it can run.

    Returns:
        Its content: containers, texts and numbers, and a LazyTensor for each tensor.

    Raises:
        CheckpointError: The file is missing, cut off or of another kind, wants to run code (the names are told), or
            claims more bytes than it has.
    """
    file = _Mapping(path)
    try:
        return _outline(file, file.content(), (), {})
    except RecursionError as error:
        raise broken(path, error) from error


def read_pickle(path: Path) -> Any:
    """As `open_pickle`, with the tensors themselves, mapped where the file allows it.

    Raises:
        CheckpointError: As there.
    """
    pickle_guard.look(path)
    return pickle_guard.load(path)


def lazy_state_dict(mapping: Any, path: Path) -> dict[str, LazyTensor]:
    """A part of an opened pickle that must be a state dict: tensors by name.

    Args:
        mapping: Of `open_pickle`.
        path: The file, for messages.

    Raises:
        CheckpointError: It holds something else.
    """
    if not isinstance(mapping, Mapping):
        raise CheckpointError(f"{path} holds a {type(mapping).__name__} instead of named tensors", "name another file")
    for name, tensor in mapping.items():
        if not isinstance(name, str) or not isinstance(tensor, LazyTensor):
            raise CheckpointError(
                f"{path}: {name!r} is of type {type(tensor).__name__}, not a tensor", "is this a file of weights?"
            )
    return dict(mapping)


def open_bins(path: Path) -> dict[str, LazyTensor]:
    """Outlines of the tensors in a folder's ``pytorch_model.bin``, or in its shards and their index.

    Raises:
        CheckpointError: A file is missing, cut off or unsafe; index and shards contradict each other.
    """
    index = index_of(path, "bin")
    if index is not None:
        return gather_shards(index, lambda file: lazy_state_dict(open_pickle(file), file))
    file = path / "pytorch_model.bin"
    if not file.is_file():
        raise CheckpointError(f"{path} holds no pytorch_model.bin and no index of shards", "name a folder with a model")
    return lazy_state_dict(open_pickle(file), file)


class _Mapping:
    """A checked file whose tensors are read through a mapping.

    A page that was read counts as the process's memory while the mapping lives, so that is made anew now and then.
    """

    def __init__(self, path: Path) -> None:
        pickle_guard.look(path)
        self.path, self._renewable = path, pickle_guard.is_zip(path)
        self._content: Any = None
        self._given: int | None = None

    def content(self) -> Any:
        if self._given is None or (self._renewable and self._given > _AT_ONCE):
            self._content, self._given = None, 0
            self._content = pickle_guard.load(self.path)
        return self._content

    def tensor(self, keys: tuple[Any, ...]) -> Tensor:
        # Torch's own method: a pickle may have given the tensor an attribute of that name.
        found = Tensor.detach(reduce(getitem, keys, self.content()))
        self._given = (self._given or 0) + found.untyped_storage().nbytes()
        return found


def _outline(file: _Mapping, part: Any, keys: tuple[Any, ...], seen: dict[int, Any]) -> Any:
    """The same containers with a LazyTensor for each tensor; what is there twice stays one object."""
    if id(part) in seen:
        return seen[id(part)]
    if isinstance(part, Tensor):
        where = f"{file.path}: {'.'.join(str(key) for key in keys)}"
        made: Any = LazyTensor(tuple(part.shape), part.dtype, partial(file.tensor, keys), where)
    elif isinstance(part, dict):
        made = {key: _outline(file, value, (*keys, key), seen) for key, value in part.items()}
    elif isinstance(part, (list, tuple)) and type(part) is not torch.Size:
        made = type(part)(_outline(file, value, (*keys, n), seen) for n, value in enumerate(part))
    else:
        return part
    seen[id(part)] = made
    return made
