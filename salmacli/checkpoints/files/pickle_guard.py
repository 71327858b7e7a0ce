"""What a stranger's pickle may do: be plain data of the sizes that it has.

There are two guards. Our own scan goes through a pickle's instructions without following them and refuses every name
but those that weights need. Then ``torch.load(weights_only=True)`` reads it. For the message objects that MMEngine and
DeepSpeed put beside the weights, empty stand-ins are made: nothing of those libraries runs.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import _weights_only_unpickler
from torch.utils._python_dispatch import TorchDispatchMode

from salmacli.checkpoints.files.storage_classes import STORAGE, StorageClasses
from salmacli.checkpoints.files.tensors import broken
from salmacli.errors import CheckpointError

_LEGACY_PICKLES, _LEGACY_CONTENT = 5, 3  # magic number, version, machine, content, order of the storages
# What Python and torch raise for a damaged file depends on where the damage lies.
_BROKEN = (
    OSError, EOFError, ValueError, LookupError, AttributeError, TypeError, RuntimeError, MemoryError,
    struct.error, pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip


class Ignored:
    """Stands for an object of another library that lies beside the weights and is not needed."""

    def __new__(cls, *_: Any) -> Ignored:
        """Whatever it is made from."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Whatever it would remember."""


class IgnoredHistory(Ignored):
    """Stands for MMEngine's log of one scalar."""


class _RefusedError(Exception):
    """A call whose name is allowed and whose arguments are not."""


def _method(owner: Any, name: str) -> Ignored:
    """What a history's pickle calls ``getattr`` for: its own methods, such as ``HistoryBuffer.mean``."""
    if owner is not IgnoredHistory:
        raise _RefusedError(f"builtins.getattr of {name!r}")
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


def is_zip(path: Path) -> bool:
    """Whether it is of PyTorch's format since 1.6, told in PyTorch's way; the older one cannot be mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def load(path: Path) -> Any:
    """Read a file that `look` has passed; its tensors are mapped where the format allows it.

    Raises:
        CheckpointError: It is broken.
    """
    try:
        with _stand_ins():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except _BROKEN as error:
        raise broken(path, error) from error


def _stand_ins() -> Any:
    return torch.serialization.safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()])


def look(path: Path) -> None:
    """Refuse a file by what its pickle would call and by the sizes it claims, before anything is read or allocated.

    Raises:
        CheckpointError: It is missing, broken, of another kind, unsafe, or claims more bytes than it has.
    """
    try:
        if is_zip(path):
            _look_into_zip(path)
        else:
            _look_into_legacy(path)
    except _BROKEN as error:
        raise broken(path, error) from error


def _look_into_zip(path: Path) -> None:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:  # it could unpack to any size
                raise CheckpointError(
                    f"{path}: {entry.filename} is packed", "save it with torch.save, which packs nothing"
                )
            if entry.header_offset + entry.file_size > size:
                raise _trap(f"{path}: {entry.filename}", entry.file_size, size)
        names = archive.namelist()
        _check_case(path, names)
        pickles = [name for name in names if re.fullmatch(r"[^/]*/data\.pkl", name)]
        if len(pickles) != 1:
            raise ValueError("a zip archive without PyTorch's data.pkl")
        stream = io.BytesIO(archive.read(pickles[0]))
        _check_protocol(path, _check_names(path, stream))
        stream.seek(0)
        place = pickles[0].removesuffix(".pkl")
        records = {entry.filename: entry.file_size for entry in archive.infolist()}
        _check_sizes(path, stream, _Storages(path, lambda key: records.get(f"{place}/{key}", 0)))


def _check_case(path: Path, names: list[str]) -> None:
    """PyTorch finds entries whatever their case, and so might read another than the one that was looked at."""
    seen: set[str] = set()
    for name in names:
        folded = name.lower()
        if folded in seen or (folded.endswith("/data.pkl") and not name.endswith("/data.pkl")):
            raise CheckpointError(
                f"{path}: its entry {name} can be taken for another by PyTorch",
                "take the file from a source you trust, as safetensors if there is one",
            )
        seen.add(folded)


def _look_into_legacy(path: Path) -> None:
    with path.open("rb") as file:
        starts, protocols = [], []
        for _ in range(_LEGACY_PICKLES):
            starts.append(file.tell())
            protocols.append(_check_names(path, file))
        _check_protocol(path, max(protocols))
        rest = path.stat().st_size - file.tell()
        file.seek(starts[_LEGACY_CONTENT])
        storages = _Storages(path, lambda _: rest)
        _check_sizes(path, file, storages)
    if storages.total > rest:
        raise _trap(str(path), storages.total, rest)


class _Storages:
    """Gives a pickle storages of the sizes that it claims and without memory.

    Args:
        path: For messages.
        held: Key of a storage → bytes that the file has for it.
    """

    def __init__(self, path: Path, held: Callable[[str], int]) -> None:
        self.path, self.held = path, held
        self.total = 0
        self._made: dict[str, torch.UntypedStorage] = {}

    def __call__(self, reference: tuple[Any, ...]) -> torch.storage.TypedStorage:
        _, kind, key, _, count = reference[:5]
        dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
        size = count * dtype.itemsize
        if key not in self._made:
            if not 0 <= size <= self.held(key):
                raise _trap(str(self.path), size, self.held(key))
            self._made[key] = torch.UntypedStorage(size, device="meta")
            self.total += size
        return torch.storage.TypedStorage(wrap_storage=self._made[key], dtype=dtype, _internal=True)


class _NoMemory(TorchDispatchMode):
    """Lets no tensor be made but such as show a part of a storage."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        claimed, held, kwargs = 0, 0, kwargs or {}
        if func is torch.ops.aten.empty.memory_format:
            claimed = math.prod(args[0]) * (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
        elif func is torch.ops.aten.set_.source_Storage_storage_offset:
            tensor, storage, offset, shape, stride = (*args, ())[:5]
            held, count = storage.nbytes(), math.prod(shape)
            end = offset + 1 + sum((side - 1) * step for side, step in zip(shape, stride, strict=False))
            # With a stride of 0 few bytes show as many, and become many when they are copied.
            claimed = max(count, end) * tensor.dtype.itemsize if count else 0
        if claimed > held:
            raise _trap(f"{self.path}: a tensor", claimed, held)
        return func(*args, **kwargs)


def _check_sizes(path: Path, stream: IO[bytes], storages: _Storages) -> None:
    """Follow a pickle whose names are known to be harmless, without the bytes of its tensors."""
    unpickler = _weights_only_unpickler.Unpickler(stream, encoding="utf-8")
    unpickler.persistent_load = storages  # type: ignore[method-assign]
    try:
        with _stand_ins(), _NoMemory(path):
            unpickler.load()
    except _RefusedError as error:
        raise _unsafe(path, [str(error)]) from error


def _check_protocol(path: Path, protocol: int) -> None:
    if protocol > 2:
        raise CheckpointError(
            f"{path} is of pickle protocol {protocol}, which cannot be read safely",
            "save it with torch.save's defaults",
        )


def _check_names(path: Path, stream: IO[bytes]) -> int:
    """Go through one pickle's instructions without following them, and refuse names that weights do not need.

    Returns:
        The pickle's protocol.
    """
    refused: set[str] = set()
    storages = StorageClasses()
    texts, memo, protocol = ["?", "?"], dict[int, Any](), 0
    top: Any = None
    argument: Any
    for code, argument, _ in pickletools.genops(stream):
        full = ""
        if code.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            module, name = texts[-2:] if code.name == "STACK_GLOBAL" else str(argument).split(" ", 1)
            full = f"{'builtins' if module == '__builtin__' else module}.{name}"
            if full not in _PLAIN and full not in _STAND_INS and not STORAGE.fullmatch(full):
                refused.add(full)
        if not storages.follow(code, argument, full):
            refused.add("the class of a storage")
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
