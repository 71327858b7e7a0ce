from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from salmacli.checkpoints.files import disk
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import open_safetensors, write_safetensors, write_shards
from salmacli.errors import CheckpointError, DataError

KINDS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
INDEX = "model.safetensors.index.json"


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    some = {f"layer.{n}.{kind}": (8 * torch.randn(3, n + 1)).to(kind) for n, kind in enumerate(KINDS)}
    return {**some, "scalar": torch.tensor(2.5), "none": torch.zeros(0, 4), "ü": torch.ones(2)}


def _lazy(tensors: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}


def _same(ours: dict[str, LazyTensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == tuple(theirs[name].shape)
        and ours[name].dtype == theirs[name].dtype
        and torch.equal(ours[name].read(), theirs[name])
        for name in theirs
    )


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    files = write_shards(tmp_path, _lazy({f"t{n}": torch.full((100,), float(n)) for n in range(4)}), 900)
    assert [file.name for file in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    return tmp_path


def test_what_the_library_writes_we_read_and_the_other_way_round(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "theirs.safetensors")
    assert _same(open_safetensors(tmp_path / "theirs.safetensors"), _tensors())
    write_safetensors(tmp_path / "ours.safetensors", _lazy(_tensors()))
    ours = load_file(tmp_path / "ours.safetensors")
    assert _same(_lazy(ours), _tensors())


def test_equal_tensors_give_equal_files_in_whatever_order(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", _lazy(_tensors()))
    write_safetensors(tmp_path / "b.safetensors", _lazy(dict(reversed(_tensors().items()))))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_view_is_written_as_what_it_shows(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    write_safetensors(tmp_path / "a.safetensors", _lazy({"column": whole[:, 1], "turned": whole.T}))
    assert _same(open_safetensors(tmp_path / "a.safetensors"), {"column": whole[:, 1], "turned": whole.T})


def test_a_tensor_that_is_not_what_was_announced_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"a is torch.float32 \(3,\), not torch.float32 \(4,\)"):
        write_safetensors(tmp_path / "a", {"a": LazyTensor((4,), torch.float32, lambda: torch.zeros(3))})


def test_shards_and_their_index(shards: Path) -> None:
    found = open_safetensors(shards)
    assert [float(found[f"t{n}"].read()[0]) for n in range(4)] == [0, 1, 2, 3]
    assert json.loads((shards / INDEX).read_text())["metadata"] == {"total_size": 1600}


def test_a_model_that_fits_one_file_gets_no_index(tmp_path: Path) -> None:
    assert [file.name for file in write_shards(tmp_path, _lazy(_tensors()))] == ["model.safetensors"]
    assert _same(open_safetensors(tmp_path), _tensors())
    assert not (tmp_path / INDEX).exists()


def _index(folder: Path, **changes: str | None) -> None:
    content = json.loads((folder / INDEX).read_text())
    for name, file in changes.items():
        content["weight_map"].pop(name) if file is None else content["weight_map"].update({name: file})
    (folder / INDEX).write_text(json.dumps(content))


def test_a_missing_shard(shards: Path) -> None:
    (shards / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shard model-00002-of-00002.safetensors \(2 tensors\)"):
        open_safetensors(shards)


def test_a_missing_index(shards: Path) -> None:
    (shards / INDEX).unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors and no index"):
        open_safetensors(shards)
    (shards / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"the shard model-00001-of-00002.safetensors without its index"):
        open_safetensors(shards)


def test_a_wrong_index(shards: Path) -> None:
    _index(shards, t0="model-00002-of-00002.safetensors")
    with pytest.raises(
        CheckpointError, match=r"00001-of-00002.safetensors holds, unknown to the index, 1 tensor \(t0\)"
    ):
        open_safetensors(shards)
    _index(shards, t0="model-00001-of-00002.safetensors", t9="model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"00001-of-00002.safetensors lacks 1 tensor \(t9\)"):
        open_safetensors(shards)


def test_a_stray_shard_and_a_stale_whole(shards: Path) -> None:
    stray = shards / "model-00003-of-00003.safetensors"
    save_file({"t9": torch.zeros(1)}, stray)
    with pytest.raises(CheckpointError, match=r"does not know .*model-00003-of-00003"):
        open_safetensors(shards)
    stray.rename(shards / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds both model\.safetensors\.index\.json and model\.safetensors"):
        open_safetensors(shards)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 3}', "{}"])
def test_an_index_that_is_none(shards: Path, content: str) -> None:
    (shards / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match="is not an index of shards"):
        open_safetensors(shards)


def test_an_index_cannot_lead_outside(shards: Path) -> None:
    _index(shards, t0="../secret.safetensors")
    with pytest.raises(DataError, match="not a plain name"):
        open_safetensors(shards)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    ],
)
def test_sizes_that_the_file_does_not_have(tmp_path: Path, header: dict[str, object]) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "bomb.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match=r"bomb\.safetensors is cut off or no checkpoint"):
        open_safetensors(tmp_path / "bomb.safetensors")


def test_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.safetensors").write_bytes(struct.pack("<Q", 1 << 50) + b"{}")
    with pytest.raises(CheckpointError, match="is cut off or no checkpoint"):
        open_safetensors(tmp_path / "bomb.safetensors")


def test_a_file_that_is_cut_off_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, _lazy(_tensors()))
    found = open_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is cut off or no checkpoint"):
        found["scalar"].read()


def test_the_disk_is_asked_for_room_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(CheckpointError, match=r"needs 0\.00 GB and its disk has 0\.00 GB left"):
        write_shards(tmp_path, _lazy(_tensors()))
    assert not list(tmp_path.iterdir())
    disk.room(tmp_path / "not" / "there" / "yet", 100)
