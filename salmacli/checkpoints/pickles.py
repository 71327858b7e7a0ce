"""PyTorch's pickles from strangers: looked at before they are read, read as plain data, tensor by tensor.

There are two guards. Our own scan goes through a pickle's instructions without following them and refuses every name
but those that weights need. Then ``torch.load(weights_only=True)`` reads it. For the message objects that MMEngine and
DeepSpeed put beside the weights, empty stand-ins are made: nothing of those libraries runs.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from salmacli.checkpoints.files import broken, gather_shards, index_of
from salmacli.checkpoints.lazy import LazyTensor
from salmacli.errors import CheckpointError

_LEGACY_PICKLES = 5  # magic number, version, machine, content, order of the storages
_AT_ONCE = 256 << 20  # bytes that are read through one mapping before it is made anew


class Ignored:
    """Stands for an object of another library that lies beside the weights and is not needed."""

    def __new__(cls, *_: Any) -> Ignored:
        """Whatever it is made from."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Whatever it would remember."""


class IgnoredHistory(Ignored):
    """Stands for MMEngine's log of one scalar."""


def _method(owner: Any, name: str) -> Ignored:
    """What a history's pickle calls ``getattr`` for: its own methods, such as ``HistoryBuffer.mean``."""
    if owner is not IgnoredHistory:
        raise pickle.UnpicklingError(f"builtins.getattr of {name!r}")
    return Ignored()


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
# Name in the pickle → what stands for it.
_STAND_INS: dict[str, Any] = {
    "mmengine.logging.history_buffer.HistoryBuffer": IgnoredHistory,
    "builtins.getattr": _method,
    "numpy.ndarray": Ignored,
    "numpy.dtype": Ignored,
    **{f"{module}.{name}": Ignored for module in _NUMPY for name in ("_reconstruct", "scalar")},
    "deepspeed.runtime.fp16.loss_scaler.LossScaler": Ignored,
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler": Ignored,
    "deepspeed.utils.tensor_fragment.fragment_address": Ignored,
    "deepspeed.runtime.zero.config.ZeroStageEnum": int,
}
_PLAIN = {
    "collections.OrderedDict",
    "builtins.set",
    "_codecs.encode",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.Tensor",  # with the next one: tensors that carried attributes, as DeepSpeed's
    "torch._tensor._rebuild_from_type_v2",
    *(f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
    *(f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
}
_STORAGE = re.compile(r"torch\.(cuda\.|storage\.)?[A-Za-z0-9]+Storage")


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
    _look(path)
    return _load(path)


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
        _look(path)
        self.path, self._renewable = path, is_zip(path)
        self._content: Any = None
        self._given: int | None = None

    def content(self) -> Any:
        if self._given is None or (self._renewable and self._given > _AT_ONCE):
            self._content, self._given = None, 0
            self._content = _load(self.path)
        return self._content

    def tensor(self, keys: tuple[Any, ...]) -> Tensor:
        found: Tensor = reduce(getitem, keys, self.content()).detach()
        self._given = (self._given or 0) + found.untyped_storage().nbytes()
        return found


def _outline(file: _Mapping, part: Any, keys: tuple[Any, ...], seen: dict[int, Any]) -> Any:
    """The same containers with a LazyTensor for each tensor; what is there twice stays one object."""
    if id(part) in seen:
        return seen[id(part)]
    if isinstance(part, Tensor):
        where = f"{file.path}: {'.'.join(str(key) for key in keys)}"
        _check_tensor(part, where)
        made: Any = LazyTensor(tuple(part.shape), part.dtype, partial(file.tensor, keys), where)
    elif isinstance(part, dict):
        made = {key: _outline(file, value, (*keys, key), seen) for key, value in part.items()}
    elif isinstance(part, (list, tuple)) and type(part) is not torch.Size:
        made = type(part)(_outline(file, value, (*keys, n), seen) for n, value in enumerate(part))
    else:
        return part
    seen[id(part)] = made
    return made


def _check_tensor(tensor: Tensor, where: str) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise CheckpointError(f"{where} is no plain tensor", "save it again from plain tensors")
    held, claimed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    if claimed > held:  # e.g. a stride of 0, which would become gigabytes when it is copied
        raise _trap(where, claimed, held)


def is_zip(path: Path) -> bool:
    """Whether it is of PyTorch's format since 1.6, told in PyTorch's way; the older one cannot be mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except pickle.UnpicklingError as error:
        if found := re.search(r"builtins\.getattr of '.*?'", str(error)):
            raise _unsafe(path, [found.group()]) from error
        # The rest of the text is torch's long advice, which would mislead here.
        raise broken(path, pickle.UnpicklingError()) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, MemoryError) as error:
        # What torch raises for a damaged file depends on where the damage lies.
        raise broken(path, error) from error


def _look(path: Path) -> None:
    """Refuse a file by what its pickle would call and by the sizes it claims, before anything is read or allocated."""
    try:
        if is_zip(path):
            protocol = _look_into_zip(path)
        else:
            with path.open("rb") as file:
                protocol = max(_check_names(path, file) for _ in range(_LEGACY_PICKLES))
    except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile, RuntimeError) as error:
        raise broken(path, error) from error
    if protocol > 2:
        raise CheckpointError(
            f"{path} is of pickle protocol {protocol}, which cannot be read safely",
            "save it with torch.save's defaults",
        )
    with FakeTensorMode():  # its tensors have sizes and no memory
        content = _load(path)
    storages: dict[int, int] = {}
    _storages(content, storages, set())
    claimed, size = sum(storages.values()), path.stat().st_size
    if claimed > size:
        raise _trap(str(path), claimed, size)


def _look_into_zip(path: Path) -> int:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:  # it could unpack to any size
                raise CheckpointError(
                    f"{path}: {entry.filename} is packed", "save it with torch.save, which packs nothing"
                )
            if entry.header_offset + entry.file_size > size:
                raise _trap(f"{path}: {entry.filename}", entry.file_size, size)
        pickles = [entry for entry in archive.infolist() if re.fullmatch(r"[^/]*/data\.pkl", entry.filename)]
        if len(pickles) != 1:
            raise ValueError("a zip archive without PyTorch's data.pkl")
        return _check_names(path, io.BytesIO(archive.read(pickles[0])))


def _storages(part: Any, found: dict[int, int], seen: set[int]) -> None:
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, Tensor):
        storage = part.untyped_storage()
        found[storage._cdata] = storage.nbytes()
    elif isinstance(part, (dict, list, tuple)):
        for value in part.values() if isinstance(part, dict) else part:
            _storages(value, found, seen)


def _check_names(path: Path, stream: IO[bytes]) -> int:
    """Go through one pickle's instructions without following them, and refuse names that weights do not need.

    Returns:
        The pickle's protocol.
    """
    refused: set[str] = set()
    texts, memo, protocol = ["?", "?"], dict[int, Any](), 0
    top: Any = None
    argument: Any
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            module, name = texts[-2:] if code.name == "STACK_GLOBAL" else str(argument).split(" ", 1)
            full = f"{'builtins' if module == '__builtin__' else module}.{name}"
            if full not in _PLAIN and full not in _STAND_INS and not _STORAGE.fullmatch(full):
                refused.add(full)
        if code.name == "PROTO":
            protocol = argument
        elif "PUT" in code.name or code.name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = top
        else:  # only STACK_GLOBAL takes texts, the last two
            top = memo.get(argument) if "GET" in code.name else argument
            texts += [top] if isinstance(top, str) else []
    if refused:
        raise _unsafe(path, sorted(refused))
    return protocol


def _trap(where: str, claimed: int, held: int) -> CheckpointError:
    return CheckpointError(
        f"{where} claims {claimed} bytes, of which there are {held}",
        "it is cut off or made to fill the memory: copy it again, from a source you trust",
    )


def _unsafe(path: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{path} wants to run {', '.join(names)} while it is read, which weights never need",
        "take the file from a source you trust, as safetensors if there is one",
    )
