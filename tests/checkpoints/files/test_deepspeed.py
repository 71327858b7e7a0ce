from __future__ import annotations

import math
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from salmacli.checkpoints.files.deepspeed import deepspeed_meta, open_deepspeed
from salmacli.checkpoints.layouts import Layout, detect
from salmacli.errors import CheckpointError

TAG = "iter_3.pth"


class LossScaler:
    def __init__(self) -> None:
        self.cur_scale = 1.0


class fragment_address(NamedTuple):
    numel: int
    start: int


class ZeroStageEnum(IntEnum):
    optimizer = 1
    gradients = 2
    weights = 3


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As far as its checkpoints need it, so that they name the classes that real ones name."""
    places: dict[str, type] = {
        "deepspeed.runtime.fp16.loss_scaler": LossScaler,
        "deepspeed.utils.tensor_fragment": fragment_address,
        "deepspeed.runtime.zero.config": ZeroStageEnum,
    }
    for place, kind in places.items():
        module = types.ModuleType(place)
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, place, module)
        monkeypatch.setattr(kind, "__module__", place)
    for place in (
        "deepspeed",
        "deepspeed.runtime",
        "deepspeed.runtime.fp16",
        "deepspeed.utils",
        "deepspeed.runtime.zero",
    ):
        monkeypatch.setitem(sys.modules, place, types.ModuleType(place))
    yield
    monkeypatch.undo()


def _groups() -> list[dict[str, Tensor]]:
    """The float32 masters of two parameter groups (with and without weight decay)."""
    torch.manual_seed(0)
    decay = {"a.weight": torch.randn(11, 5), "b.weight": torch.randn(3, 11)}
    return [decay, {"gamma": torch.randn(1), "a.bias": torch.randn(11), "norm.weight": torch.randn(11)}]


FROZEN = {"frozen.weight": torch.arange(35.0).view(5, 7).bfloat16(), "frozen.bias": torch.arange(5.0).bfloat16()}
BUFFERS = {"count": torch.tensor([3, 4])}


def write(root: Path, stage: int, ranks: int, **extra: Any) -> Path:
    """What the engine of DeepSpeed 0.19 writes at `save_checkpoint(root, TAG)` in bf16 training."""
    folder = root / TAG
    folder.mkdir(parents=True)
    (root / "latest").write_text(TAG)
    groups = _groups()
    trained = {name: tensor.bfloat16() for group in groups for name, tensor in group.items()}
    whole: dict[str, Tensor] = {**BUFFERS, **FROZEN, **trained}
    state: dict[str, Any] = {
        "module": OrderedDict(whole),
        "buffer_names": ["count"],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in groups],
        "frozen_param_shapes": OrderedDict((name, tensor.shape) for name, tensor in FROZEN.items()),
        "shared_params": {},
        "frozen_param_fragments": OrderedDict(FROZEN),
        "global_steps": 3,
        "dp_world_size": ranks,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": stage}},
        "ds_version": "0.19.8",
        "meta": {"iter": 3},
        **extra,
    }
    if stage < 3:
        torch.save(state, folder / "mp_rank_00_model_states.pt")
    for rank in range(ranks):
        if stage == 3:
            pieces = {name: _cut(tensor, rank, ranks) for name, tensor in FROZEN.items()}
            holes = {name: tensor if name in BUFFERS else tensor.new_empty(0) for name, tensor in whole.items()}
            torch.save(
                {**state, "module": OrderedDict(holes), "frozen_param_fragments": OrderedDict(pieces)},
                folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt",
            )
        if stage:
            optimizer = {"optimizer_state_dict": _optimizer(stage, groups, rank, ranks), "ds_version": "0.19.8"}
            torch.save(optimizer, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


def _cut(tensor: Tensor, rank: int, ranks: int) -> Tensor:
    """Stage 3: rank's piece of one tensor, padded at the end."""
    size = math.ceil(tensor.numel() / ranks)
    padded = torch.cat([tensor.flatten(), tensor.new_zeros(size * ranks - tensor.numel())])
    return padded[rank * size : (rank + 1) * size].clone()


def _optimizer(stage: int, groups: list[dict[str, Tensor]], rank: int, ranks: int) -> dict[str, Any]:
    common = {"loss_scaler": LossScaler(), "overflow": False, "zero_stage": ZeroStageEnum(stage)}
    if stage == 3:
        flat = [torch.cat([_cut(tensor, rank, ranks) for tensor in group.values()]) for group in groups]
        for one in flat:
            one.ds_numel = one.numel()  # type: ignore[attr-defined]  # as DeepSpeed marks them
        moments = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(5)}}, "param_groups": [{"lr": 1e-2}]}
        return {**common, "partition_count": ranks, "optimizer_state_dict": moments, "fp32_flat_groups": flat}
    pieces, slices = [], []
    for group in groups:
        flat_group = torch.cat([tensor.flatten() for tensor in group.values()])
        size = 2 * math.ceil(flat_group.numel() / (2 * ranks))
        pieces.append(flat_group[rank * size : (rank + 1) * size].clone())  # the padding is not saved
        slices.append(OrderedDict((name, fragment_address(tensor.numel(), 0)) for name, tensor in group.items()))
    return {
        **common,
        "base_optimizer_state": {"state": {}, "param_groups": [{"lr": 1e-2, "betas": (0.9, 0.999)}]},
        "single_partition_of_fp32_groups": pieces,
        "param_alignment_paddings": [[0] * len(group) for group in groups],
        "partition_count": [ranks] * len(groups),
        "param_slice_mappings": slices,
    }


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_masters_are_gathered_from_all_ranks(deepspeed: None, tmp_path: Path, stage: int, ranks: int) -> None:
    folder = write(tmp_path / "run", stage, ranks)
    for name in [name for name in sys.modules if name.startswith("deepspeed")]:
        del sys.modules[name]
    masters = {name: tensor for group in _groups() for name, tensor in group.items()}
    for path in (folder, tmp_path / "run", *folder.glob("*rank_00_model_states.pt")):
        assert detect(path) is Layout.DEEPSPEED
        found = open_deepspeed(path)
        assert found.keys() == {**masters, **FROZEN, **BUFFERS}.keys()
        for name, tensor in {**masters, **FROZEN, **BUFFERS}.items():
            assert (found[name].shape, found[name].dtype) == (tuple(tensor.shape), tensor.dtype)
            assert torch.equal(found[name].read(), tensor)


@pytest.mark.parametrize("stage", [0, 2])
def test_without_the_optimizers_the_weights_are_what_there_is(deepspeed: None, tmp_path: Path, stage: int) -> None:
    folder = write(tmp_path, stage, 2)
    for file in folder.glob("*optim*"):
        file.unlink()
    found = open_deepspeed(folder)
    assert all(torch.equal(found[name].read(), tensor.bfloat16()) for name, tensor in _groups()[0].items())


def test_shared_tensors_and_paddings(deepspeed: None, tmp_path: Path) -> None:
    folder = write(tmp_path, 2, 1, shared_params={"head.weight": "a.weight"})
    file = next(folder.glob("*optim*"))
    content = torch.load(file, weights_only=False)
    state = content["optimizer_state_dict"]
    a, b = _groups()[0].values()
    state["single_partition_of_fp32_groups"][0] = torch.cat([a.flatten(), torch.zeros(7), b.flatten()])
    state["param_alignment_paddings"][0] = [7, 0]
    torch.save(content, file)
    found = open_deepspeed(folder)
    assert torch.equal(found["head.weight"].read(), a) and torch.equal(found["b.weight"].read(), b)


@pytest.mark.parametrize(
    ("stage", "lost", "told"),
    [
        (2, "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "lacks the optim_states.pt of rank 1 of 3"),
        (3, "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "lacks the optim_states.pt of rank 0 of 3"),
        (3, "zero_pp_rank_2_mp_rank_00_model_states.pt", "lacks the model_states.pt of rank 2 of 3"),
        (3, "bf16_*", "lacks the ranks' zero_pp_rank_.* with the weights"),
        (2, "mp_rank_*", "holds no DeepSpeed checkpoint"),
    ],
)
def test_lost_files(deepspeed: None, tmp_path: Path, stage: int, lost: str, told: str) -> None:
    folder = write(tmp_path, stage, 3)
    for file in list(folder.glob(lost)):
        file.unlink()
    with pytest.raises(CheckpointError, match=told):
        open_deepspeed(folder)


def test_files_of_an_older_run_with_more_ranks(deepspeed: None, tmp_path: Path) -> None:
    folder = write(tmp_path / "new", 2, 2)
    older = write(tmp_path / "old", 2, 3)
    name = "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt"
    (older / name).rename(folder / name)
    with pytest.raises(CheckpointError, match=r"holds 3 files optim_states\.pt of 2 ranks"):
        open_deepspeed(folder)


@pytest.mark.parametrize("stage", [2, 3])
def test_pieces_that_do_not_make_up_the_tensors(deepspeed: None, tmp_path: Path, stage: int) -> None:
    shapes = [OrderedDict((name, torch.Size([9, 9])) for name in group) for group in _groups()]
    folder = write(tmp_path, stage, 2, param_shapes=shapes)
    with pytest.raises(CheckpointError, match=r"(group 0|rank 0) has \d+ numbers for \d+ of its shapes"):
        open_deepspeed(folder)


def test_tensor_parallel_runs_and_other_content(deepspeed: None, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tensor-parallel"):
        open_deepspeed(write(tmp_path / "parallel", 2, 1, mp_world_size=2))
    with pytest.raises(CheckpointError, match="holds no module"):
        open_deepspeed(write(tmp_path / "other", 2, 1, module=None))


def test_which_of_several(deepspeed: None, tmp_path: Path) -> None:
    write(tmp_path, 2, 1).rename(tmp_path / "iter_6.pth")
    with pytest.raises(CheckpointError, match=r"names 'iter_3\.pth', and there is no such checkpoint"):
        open_deepspeed(tmp_path)
    write(tmp_path, 2, 1)
    assert open_deepspeed(tmp_path)
    (tmp_path / "latest").unlink()
    with pytest.raises(CheckpointError, match=r"holds 2 DeepSpeed checkpoints; name one, such as .*iter_6\.pth"):
        open_deepspeed(tmp_path)


def test_what_the_trainer_noted(tmp_path: Path) -> None:
    file = tmp_path / "mp_rank_00_model_states.pt"
    for content, meta in (({"meta": {"iter": 7}}, {"iter": 7}), ({"meta": "none"}, {}), ({}, {})):
        torch.save({"module": {"a": torch.ones(1)}, **content}, file)
        assert deepspeed_meta(tmp_path) == deepspeed_meta(file) == meta
    with pytest.raises(CheckpointError, match="holds no DeepSpeed checkpoint"):
        deepspeed_meta(tmp_path / "no")
