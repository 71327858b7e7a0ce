from __future__ import annotations

import pytest
import torch

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.training import comparison
from salmacli.checkpoints.training.comparison import Difference, difference, key_report


@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_differences_are_those_of_the_whole_tensor(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(comparison, "_CHUNK", chunk)
    torch.manual_seed(0)
    old, new = torch.randn(6, 7), torch.randn(6, 7)
    found = difference(old, new)
    assert found.changed
    assert found.relative == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-5)
    assert found.cosine == pytest.approx(torch.cosine_similarity(old.flatten(), new.flatten(), 0).item(), rel=1e-4)


def test_the_last_bit_counts() -> None:
    old = torch.ones(3, 4)
    new = old.clone()
    assert difference(old, new) == Difference(False, 0.0, pytest.approx(1.0))
    new[2, 3] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert difference(old, new).changed
    assert not difference(old.bfloat16(), old).changed  # another type, the same numbers


def test_added_rows_are_a_change_and_the_others_are_compared() -> None:
    old = torch.randn(4, 3)
    found = difference(old, torch.cat([old, torch.ones(2, 3)]))
    assert found == Difference(True, 0.0, pytest.approx(1.0))


def test_from_nothing() -> None:
    assert difference(torch.zeros(()), torch.tensor(2.0)) == Difference(True, 1.0, 0.0)
    assert difference(torch.zeros(2), torch.zeros(2)) == Difference(False, 0.0, 0.0)


def test_the_report_counts_every_tensor_once(tiny_model) -> None:
    state = tiny_model.state_dict()
    rows = key_report({name: LazyTensor.of(tensor) for name, tensor in state.items()})
    assert sum(row.tensors for row in rows) == len(state)
    assert sum(row.parameters for row in rows) == sum(tensor.numel() for tensor in state.values())
    names = {row.module for row in rows}
    assert {"cma", "grounding.image_encoder", "grounding.sam_mask_decoder", "text_hidden_fcs"} <= names
    assert all(row.changed is None and row.new is None for row in rows)


def test_the_report_says_what_changed_and_by_how_much() -> None:
    tensors = {
        "cma.a": LazyTensor.of(torch.zeros(2, 3)),
        "cma.b": LazyTensor.of(torch.zeros(4, dtype=torch.bfloat16)),
        "cma.c": LazyTensor.of(torch.zeros(1)),
        "cma.d": LazyTensor.of(torch.zeros(1)),
    }
    differences = {
        "cma.a": Difference(True, 0.5, 1),
        "cma.b": Difference(True, 0.1, 1),
        "cma.c": Difference(False, 0, 1),
    }
    (row,) = key_report(tensors, ["cma.a", "cma.b", "cma.c"], differences)
    assert (row.tensors, row.parameters, row.dtype, row.bytes) == (4, 12, "bfloat16, float32", 40)
    assert (row.changed, row.new, row.change, row.most) == (2, 1, pytest.approx(0.3), 0.5)
