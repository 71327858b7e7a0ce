from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.training.lora import LoraSettings, Pair, agreed, merge, rank_of, split_pairs
from salmacli.errors import CheckpointError, UsageError

MODULE = "model.layers.0.self_attn.q_proj"


def _lazy(**tensors: torch.Tensor) -> dict[str, LazyTensor]:
    return {name.replace("__", "."): LazyTensor.of(tensor) for name, tensor in tensors.items()}


def _pair(rank: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, LazyTensor]:
    torch.manual_seed(rank)
    return {
        f"{MODULE}.lora_A.default.weight": LazyTensor.of(torch.randn(rank, 6, dtype=dtype)),
        f"{MODULE}.lora_B.default.weight": LazyTensor.of(torch.randn(8, rank, dtype=dtype)),
    }


@pytest.mark.parametrize("adapter", [".default", ""])
def test_halves_are_paired_and_the_rest_is_left_alone(adapter: str) -> None:
    named = {name.replace(".default", adapter): tensor for name, tensor in _pair().items()}
    pairs, rest = split_pairs({**named, "norm.weight": LazyTensor.of(torch.ones(2))}, "file")
    assert list(pairs) == [MODULE]
    assert (pairs[MODULE].rank, pairs[MODULE].shape, list(rest)) == (4, (8, 6), ["norm.weight"])


def test_merging_is_what_peft_computes() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8))
    before = model[0].weight.detach().clone()
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=10, target_modules=["0"], use_rslora=False))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    tensors = {n: LazyTensor.of(t.clone()) for n, t in adapted.state_dict().items() if "lora_" in n}
    pairs, _ = split_pairs(tensors, "file")
    ((_, pair),) = pairs.items()
    ours = merge(LazyTensor.of(before), pair, LoraSettings(10).scale(rank_of(pairs, None, "file")))
    torch.testing.assert_close(ours.read(), adapted.merge_and_unload()[0].weight.detach(), rtol=1e-6, atol=1e-6)
    assert ours.shape == (8, 6)


def test_the_wider_type_wins_and_bf16_is_added_in_float32() -> None:
    weight = torch.randn(8, 6, dtype=torch.bfloat16)
    (pair,) = split_pairs(_pair(), "file")[0].values()
    merged = merge(LazyTensor.of(weight), pair, 2.0)
    expected = weight.float() + 2.0 * pair.up.read() @ pair.down.read()
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.read(), expected)
    (narrow,) = split_pairs(_pair(dtype=torch.bfloat16), "file")[0].values()
    assert merge(LazyTensor.of(weight), narrow, 1.0).dtype == torch.bfloat16


def test_scales() -> None:
    assert LoraSettings(16, 8).scale(8) == 2
    assert LoraSettings(16, 16, root=True).scale(16) == 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(f"{MODULE}.lora_B.default.weight"), r"lacks 1 tensor \(.*q_proj\.lora_B\)"),
        (lambda t: t.update(_lazy(a__lora_embedding_A__default=torch.ones(1))), "kind of LoRA"),
        (lambda t: t.update(_lazy(a__lora_magnitude_vector__default__weight=torch.ones(1))), "kind of LoRA"),
        (
            lambda t: t.update({k.replace("default", "other").replace("q_", "k_"): v for k, v in _pair().items()}),
            "several",
        ),
        (lambda t: t.update({f"{MODULE}.lora_A.default.weight": LazyTensor.of(torch.ones(3, 6))}), "do not fit"),
    ],
)
def test_halves_that_do_not_fit(change, told: str) -> None:
    tensors = _pair()
    change(tensors)
    with pytest.raises(CheckpointError, match=told):
        split_pairs(tensors, "file")


def test_another_rank_than_stated_or_than_the_others() -> None:
    one = Pair(LazyTensor.of(torch.ones(4, 6)), LazyTensor.of(torch.ones(8, 4)))
    other = Pair(LazyTensor.of(torch.ones(2, 6)), LazyTensor.of(torch.ones(8, 2)))
    assert rank_of({"a": one}, LoraSettings(8, 4), "file") == 4
    with pytest.raises(CheckpointError, match="rank 4, but its configuration states 128"):
        rank_of({"a": one}, LoraSettings(8, 128), "file")
    with pytest.raises(CheckpointError, match=r"rank 4, but 2 in 1 tensor \(c\)"):
        rank_of({"a": one, "b": one, "c": other}, LoraSettings(8), "file")


VISION = LoraSettings(16, 8, False)


@pytest.mark.parametrize(
    ("stated", "together"),
    [
        ([LoraSettings(8)], LoraSettings(8, None, False)),
        ([LoraSettings(8), LoraSettings(8, root=True)], LoraSettings(8, None, True)),
        ([LoraSettings(8), LoraSettings(8, 4, True), LoraSettings(8, 4)], LoraSettings(8, 4, True)),
        ([LoraSettings(8, 4, False, VISION), LoraSettings(8)], LoraSettings(8, 4, False, VISION)),
    ],
)
def test_all_that_anyone_states(stated: list[LoraSettings], together: LoraSettings) -> None:
    for order in (stated, stated[::-1]):
        assert agreed({str(who): one for who, one in enumerate(order)}) == together


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"alpha": 16.0}, r"α is stated differently: 8 \(--config\), 16 \(file\)"),
        ({"rank": 2}, r"rank is stated differently: 4 \(--config\), 2 \(file\)"),
        ({"root": True}, r"use_rslora is stated differently: False \(--config\), True \(file\)"),
        (
            {"vision": LoraSettings(32)},
            r"vision tower is stated differently: 16 \(r 8, use_rslora False\) .* 32 \(file",
        ),
    ],
)
def test_two_who_contradict_each_other(change: dict, told: str) -> None:
    one = LoraSettings(8, 4, False, VISION)
    with pytest.raises(UsageError, match=told):
        agreed({"--config": one, "file": replace(one, **change)})
