from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from salmacli.checkpoints.files import pickle_guard, pickles
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.pickles import lazy_state_dict, open_bins, open_pickle, read_pickle
from salmacli.errors import CheckpointError

TERABYTES = 1 << 42


class Calls:
    """What a stranger's pickle may hold: a call that is made while it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class HistoryBuffer:
    """Pickles as MMEngine's does: two arrays, and its own methods by name."""

    def __init__(self) -> None:
        self._log_history, self._count_history = np.array([1.5, 2.0]), np.array([1, 1])

    def mean(self) -> float:
        return float(self._log_history.mean())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("nothing of MMEngine runs")


@pytest.fixture
def mmengine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    yield
    monkeypatch.undo()  # whoever reads the file has no MMEngine


def _both(content: Any, folder: Path, **options: Any) -> list[Path]:
    """The content in PyTorch's format of today and in that of before 1.6."""
    paths = [folder / "new.pth", folder / "old.pth"]
    for path in paths:
        torch.save(content, path, _use_new_zipfile_serialization=path.name == "new.pth", **options)
    return paths


def _rezip(source: Path, target: Path, change: Callable[[bytes], bytes], packed: bool = False) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED if packed else 0) as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith("data.pkl") else data)


def test_containers_come_back_with_tensors_that_are_read_when_needed(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    content = {
        "state_dict": OrderedDict(a=weight, b=weight[1:], c=torch.ones(2, dtype=torch.bfloat16)),
        "list": [1, (2.5, torch.arange(3))],
        "shape": torch.Size([2, 3]),
        "parameter": torch.nn.Parameter(torch.ones(1)),
        5: {"nested": {"set": {1}}},
    }
    for path in _both(content, tmp_path):
        found = open_pickle(path)
        state = lazy_state_dict(found["state_dict"], path)
        assert {name: one.shape for name, one in state.items()} == {"a": (4, 3), "b": (3, 3), "c": (2,)}
        assert all(torch.equal(state[name].read(), content["state_dict"][name]) for name in state)  # type: ignore[index]
        assert state["a"].origin == f"{path}: state_dict.a"
        assert torch.equal(found["list"][1][1].read(), torch.arange(3)) and found["list"][1][0] == 2.5
        assert found["shape"] == torch.Size([2, 3]) and found[5] == {"nested": {"set": {1}}}
        assert not found["parameter"].read().requires_grad
        assert torch.equal(read_pickle(path)["state_dict"]["b"], weight[1:])


def test_what_was_read_leaves_the_memory_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_AT_ONCE", 1000)
    loads, load = [], pickle_guard.load
    new, _ = _both({f"t{n}": torch.full((100,), float(n)) for n in range(12)}, tmp_path)
    found = open_pickle(new)
    monkeypatch.setattr(pickle_guard, "load", lambda path: loads.append(path) or load(path))
    assert [float(one.read()[0]) for one in found.values()] == list(range(12))
    assert len(loads) == 3


def test_message_objects_of_mmengine(mmengine: None, tmp_path: Path) -> None:
    hub = {
        "log_scalars": OrderedDict(loss=HistoryBuffer()),
        "runtime_info": OrderedDict(iter=3, best=np.float64(2.5), last=np.int64(7)),
    }
    content = {"state_dict": {"a": torch.ones(2)}, "meta": {"iter": 3}, "message_hub": hub}
    paths = _both(content, tmp_path)
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        del sys.modules[name]
    for path in paths:
        names = {str(one) for one in pickle_names(path)}
        assert {"mmengine.logging.history_buffer HistoryBuffer", "__builtin__ getattr", "numpy ndarray"} <= names
        found = open_pickle(path)
        assert torch.equal(found["state_dict"]["a"].read(), torch.ones(2))
        assert found["meta"] == {"iter": 3} and found["message_hub"]["runtime_info"]["iter"] == 3


def pickle_names(path: Path) -> Iterator[str]:
    """Globals of the content's pickle, as written."""
    import pickletools

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
            streams = [io.BytesIO(data)]
    else:
        streams = [io.BytesIO(path.read_bytes())] * 4
    for stream in streams:
        yield from (argument for code, argument, _ in pickletools.genops(stream) if code.name == "GLOBAL")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (Calls(os.system, "exit 1"), r"(posix|nt)\.system"),
        (Calls(eval, "1"), r"builtins\.eval"),
        (Calls(bytearray, TERABYTES), r"builtins\.bytearray"),
        (Calls(getattr, torch.Size, "mro"), r"builtins\.getattr of 'mro'"),
        (Calls(np.zeros, 3), r"numpy\.zeros"),
        (Path("x"), r"pathlib\.\w+"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_that_want_to_run_code_are_named_and_not_run(
    tmp_path: Path, call: object, told: str, protocol: int
) -> None:
    if protocol == 4 and "getattr" in told:
        told = "protocol 4"  # only its arguments tell that it is not MMEngine's
    for path in _both({"state_dict": {"a": torch.ones(1)}, "x": call}, tmp_path, pickle_protocol=protocol):
        for read in (open_pickle, read_pickle):
            with pytest.raises(CheckpointError, match=rf"{path.name} .*{told}"):
                read(path)


def test_a_plain_pickle_that_wants_to_run_code(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Calls(os.system, "exit 1")))
    with pytest.raises(CheckpointError, match=r"wants to run (posix|nt)\.system"):
        open_pickle(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "held"),
    [
        (torch.ones(1).expand(TERABYTES), 4),
        (torch.ones(3).as_strided((2,), (1,)), None),
        (Calls(torch.Tensor, TERABYTES), 0),
        (Calls(np.dtype, Calls(torch.Tensor, TERABYTES)), 0),  # where nobody would see it afterwards
    ],
)
def test_tensors_that_the_file_does_not_have(tmp_path: Path, content: object, held: int | None) -> None:
    for path in _both({"a": content}, tmp_path):
        if held is None:
            assert open_pickle(path)["a"].shape == (2,)
            continue
        for read in (open_pickle, read_pickle):
            with pytest.raises(
                CheckpointError, match=rf"{path.name}: a tensor claims {4 * TERABYTES} bytes, of which there are {held}"
            ):
                read(path)


@pytest.mark.parametrize(("offset", "shape", "stride"), [(1, (77,), (1,)), (0, (2, 2), (76, 2)), (78, (1,), (1,))])
def test_views_beyond_their_storage(tmp_path: Path, offset: int, shape: Any, stride: Any) -> None:
    storage = torch.arange(77.0)._typed_storage()
    view = Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, OrderedDict())
    for path in _both({"a": view}, tmp_path):
        with pytest.raises(CheckpointError, match=r": a tensor claims \d+ bytes, of which there are 308"):
            open_pickle(path)


def test_storages_that_the_file_does_not_have(tmp_path: Path) -> None:
    new, old = _both({"a": torch.arange(77.0)}, tmp_path)

    def claim(data: bytes) -> bytes:  # the number of elements, wherever it stands
        assert data.count(b"K\x4d") >= 1
        return data.replace(b"K\x4d", b"\x8a\x06" + TERABYTES.to_bytes(6, "little"))

    _rezip(new, tmp_path / "bomb.pth", claim)
    (tmp_path / "old-bomb.pth").write_bytes(claim(old.read_bytes()))
    for name in ("bomb.pth", "old-bomb.pth"):
        with pytest.raises(CheckpointError, match=rf"{name} claims {4 * TERABYTES} bytes"):
            open_pickle(tmp_path / name)


def test_storages_that_are_too_many_for_the_file(tmp_path: Path) -> None:
    _, old = _both({"a": torch.zeros(1000), "b": torch.zeros(1000)}, tmp_path)
    old.write_bytes(old.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"old\.pth claims 8000 bytes, of which there are 6\d\d\d"):
        open_pickle(old)


def test_a_packed_file(tmp_path: Path) -> None:
    _rezip(_both({"a": torch.zeros(1000)}, tmp_path)[0], tmp_path / "packed.pth", bytes, packed=True)
    with pytest.raises(CheckpointError, match=r"packed\.pth: \S+ is packed"):
        open_pickle(tmp_path / "packed.pth")


def test_other_kinds_of_content(tmp_path: Path) -> None:
    for path in _both({"a": torch.ones(1)}, tmp_path, pickle_protocol=4):
        with pytest.raises(CheckpointError, match="protocol 4, which cannot be read safely"):
            open_pickle(path)
    for path in _both({"a": torch.eye(2).to_sparse()}, tmp_path):
        with pytest.raises(CheckpointError, match="_rebuild_sparse_tensor"):
            open_pickle(path)
    inside: list[Any] = []
    inside.append(inside)
    for path in _both(inside, tmp_path):
        with pytest.raises(CheckpointError, match="cut off or no checkpoint"):
            open_pickle(path)
    wide: list[Any] = []
    for _ in range(60):
        wide = [wide, wide]
    for path in _both(wide, tmp_path):
        assert len(open_pickle(path)) == 2
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "b")
    with pytest.raises(CheckpointError, match=r"without PyTorch's data\.pkl"):
        open_pickle(tmp_path / "other.zip")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_cut_off_files(tmp_path: Path, share: float) -> None:
    for path in _both({"a": torch.arange(500.0)}, tmp_path):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(
            CheckpointError,
            match=r"\.pth (is cut off|is empty|claims \d+ bytes, of which there are \d+; it is cut off)",
        ):
            open_pickle(path)


@pytest.mark.parametrize("part", [None, [1], {"a": 1}, {1: LazyTensor.of(torch.ones(1))}])
def test_state_dicts_that_are_none(part: object) -> None:
    with pytest.raises(CheckpointError, match=r"file\.pth.*(instead of named tensors|not a tensor)"):
        lazy_state_dict(part, Path("file.pth"))


def test_folders_of_bins(tmp_path: Path) -> None:
    import json

    with pytest.raises(CheckpointError, match="no pytorch_model"):
        open_bins(tmp_path)
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert open_bins(tmp_path)["a"].shape == (2,)
    (tmp_path / "pytorch_model.bin").unlink()
    files = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    torch.save({"a": torch.ones(2)}, tmp_path / files["a"])
    with pytest.raises(CheckpointError, match="lacks the shard pytorch_model-00002"):
        open_bins(tmp_path)
    torch.save({"b": torch.ones(3)}, tmp_path / files["b"])
    assert {name: one.shape for name, one in open_bins(tmp_path).items()} == {"a": (2,), "b": (3,)}


@pytest.mark.parametrize(
    "call",
    [
        Calls(torch.UntypedStorage, TERABYTES),
        Calls(torch.storage.TypedStorage, TERABYTES),
        Calls(torch._tensor._rebuild_from_type_v2, torch.UntypedStorage, torch.Tensor, (TERABYTES,), {}),
        OrderedDict(kind=torch.UntypedStorage),
    ],
)
def test_classes_of_storages_are_not_called(tmp_path: Path, call: object) -> None:
    for path in _both({"a": torch.ones(1), "x": call}, tmp_path):
        for read in (open_pickle, read_pickle):
            with pytest.raises(CheckpointError, match=rf"{path.name} wants to run the class of a storage"):
                read(path)


def test_entries_that_differ_in_case_only(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pth")
    for name in ("x/DATA.PKL", "other/Data.pkl", "x/DATA/0"):
        shutil.copyfile(tmp_path / "x.pth", tmp_path / "y.pth")
        with zipfile.ZipFile(tmp_path / "y.pth", "a") as archive:
            archive.writestr(name, b"")
        with pytest.raises(CheckpointError, match=rf"y\.pth: its entry {name} can be taken for another"):
            open_pickle(tmp_path / "y.pth")


def test_attributes_of_tensors_stand_for_nothing(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    tensor.detach = "mine"  # type: ignore[assignment,method-assign]
    torch.save({"a": tensor}, tmp_path / "x.pth")
    assert torch.equal(open_pickle(tmp_path / "x.pth")["a"].read(), torch.ones(2))
