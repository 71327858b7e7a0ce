"""Saved plain, brought back bit for bit: what a training with adapters leaves behind, and goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from salmacli.checkpoints.adapted import fingerprint, plain_tensors
from salmacli.checkpoints.load import load_checkpoint, read_trainer_file
from salmacli.checkpoints.resume import model_to_train
from salmacli.checkpoints.save import Weights, save_checkpoint
from salmacli.config.loading import load_config
from salmacli.config.schema import RunConfig
from salmacli.errors import CheckpointError
from salmacli.models.salma import Salma

SMALL = [
    "model.cma.enabled=true",
    "model.sam2.embed_dim=16",
    "model.sam2.width=32",
    "model.sam2.image_size=64",
    "model.mllm.native.vision_config.num_hidden_layers=1",
    "model.mllm.native.text_config.hidden_size=32",
    "model.mllm.native.text_config.intermediate_size=64",
    "model.mllm.native.text_config.num_attention_heads=2",
    "model.mllm.native.text_config.num_key_value_heads=1",
    "train.lora.rank=4",
    "train.lora.alpha=8",
    "train.recipe=lora",
]
TIED = ["model.mllm.native.tie_word_embeddings=true", "model.mllm.native.text_config.tie_word_embeddings=true"]


def config(*assignments: str) -> RunConfig:
    return load_config("tiny", [*SMALL, *assignments])


def begin(settings: RunConfig, resume: Path | None = None, bf16: bool = False, seed: int = 0) -> Salma:
    torch.manual_seed(seed)
    return model_to_train(settings, ["the red circle"], resume, bf16=bf16).eval()


@torch.no_grad()
def move(model: Salma, by: float = 0.05) -> Salma:
    """As training would, but at once."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(by * torch.randn_like(parameter))
    return model


def save(model: Salma, folder: Path, **weights: object) -> Path:
    given = Weights(frozen=fingerprint(model), **weights)
    save_checkpoint(folder / "step-3", model, config={}, step=3, trainer_state={"step": 3}, weights=given)
    return folder / "step-3"


def words(model: Salma) -> Tensor:
    """What the LLM says: logits of a conversation that has every new token in it."""
    ids = torch.arange(model.mllm.model.config.text_config.vocab_size)[None]
    seen = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    with torch.no_grad():
        return model.mllm.vocabulary_logits(model.mllm(ids, None, seen, torch.arange(ids.shape[1])[None]))


@pytest.mark.parametrize(
    "settings",
    [
        ["train.vocabulary=new"],
        pytest.param([], marks=pytest.mark.slow),
        pytest.param(["train.vocabulary=none"], marks=pytest.mark.slow),
        pytest.param(["train.vocabulary=new", *TIED], marks=pytest.mark.slow),
        pytest.param(["train.lora.modules=[v_proj]"], marks=pytest.mark.slow),
    ],
)
def test_the_merged_weights_are_what_the_adapted_model_computes(settings, tmp_path):
    model = move(begin(config(*settings)).double())
    plain, _ = load_checkpoint(save(model, tmp_path), dtype=torch.float64)
    assert (words(plain) - words(model)).abs().max() < 1e-6
    assert not [name for name in plain.state_dict() if "lora" in name or "new_rows" in name or "base_layer" in name]


def test_merged_in_float32_every_layer_computes_the_same():
    model = move(begin(config()))
    tensors = plain_tensors(model)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            weight, bias = tensors[f"{name}.weight"].read(), module.get_base_layer().bias
            seen = torch.randn(5, weight.shape[1])
            assert torch.allclose(module(seen), F.linear(seen, weight, bias), rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("settings", "bf16", "averaged"),
    [
        ([], False, False),
        (["train.vocabulary=new"], True, False),
        (["train.vocabulary=none", *TIED], True, True),
        pytest.param(["train.recipe=full"], False, True, marks=pytest.mark.slow),
        pytest.param(["train.recipe=decoder-only"], True, False, marks=pytest.mark.slow),
        pytest.param(["train.recipe=full"], True, False, marks=pytest.mark.slow),
        pytest.param(["train.vocabulary=new", *TIED], False, True, marks=pytest.mark.slow),
        pytest.param(["train.recipe=cma-only"], True, True, marks=pytest.mark.slow),
    ],
)
def test_a_training_goes_on_bit_for_bit(settings, bf16, averaged, tmp_path):
    settings = config(*settings)
    model = move(begin(settings, bf16=bf16))
    averages = {name: one.detach() * 0.5 for name, one in model.named_parameters() if one.requires_grad}
    folder = save(model, tmp_path, averages=averages if averaged else None)
    again = begin(settings, folder, bf16=bf16)
    for name, parameter in again.named_parameters():
        mine = model.get_parameter(name)
        assert (parameter.requires_grad, parameter.dtype) == (mine.requires_grad, mine.dtype), name
        # Of a matrix with new rows, the rows that they stand in for are of no account.
        assert torch.equal(parameter, mine) or hasattr(model.get_submodule(name.rpartition(".")[0]), "new_rows"), name
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(words(again.float()), words(model.float()))


@pytest.mark.slow
def test_averages_are_what_the_model_of_a_checkpoint_is(tmp_path):
    model = move(begin(config()))
    trained = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
    move(model, 0.1)  # the weights go on, the averages stay behind
    saved, _ = load_checkpoint(save(model, tmp_path, averages=trained))
    with torch.no_grad():
        for name, tensor in trained.items():
            model.get_parameter(name).copy_(tensor)
    assert torch.allclose(words(saved), words(model), atol=1e-4)
    assert torch.equal(saved.text_hidden_fcs[0].weight, model.text_hidden_fcs[0].weight)


def test_a_state_that_was_gathered_is_saved_instead_of_the_models_own(tmp_path):
    model = move(begin(config()))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = save(model, tmp_path / "own")
    frozen = fingerprint(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # a shard of nothing
    save_checkpoint(
        tmp_path / "step-3", model, config={}, step=3, trainer_state={"step": 3}, weights=Weights(state, None, frozen)
    )
    for file in ("model.safetensors", "ckpt.pth"):
        assert (own / file).read_bytes() == (tmp_path / "step-3" / file).read_bytes()


def test_beside_the_plain_weights_lies_only_what_they_do_not_hold(tmp_path):
    content = read_trainer_file(save(move(begin(config("train.vocabulary=new"))), tmp_path))
    assert all(".lora_" in name or name.endswith(".new_rows") for name in content["trained"])
    assert len(content["trained"]) == 2 * 7 * 2 + 2
    assert not read_trainer_file(save(begin(config("train.recipe=full")), tmp_path / "full"))["trained"]


@pytest.mark.parametrize(
    ("other", "seed", "told"),
    [
        ([], 1, "other frozen weights"),
        pytest.param(["train.recipe=full"], 0, "other frozen weights", marks=pytest.mark.slow),
        pytest.param(["train.lora.rank=2"], 0, "differ in .*lora_A.*train.lora has changed", marks=pytest.mark.slow),
        (["train.vocabulary=new"], 0, "differ in .*new_rows"),
    ],
)
def test_another_base_or_recipe_is_refused_in_one_line(other, seed, told, tmp_path):
    folder = save(begin(config()), tmp_path)
    with pytest.raises(CheckpointError, match=told) as caught:
        begin(config(*other), folder, seed=seed)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_without_adapters_no_base_is_needed_to_go_on(tmp_path, monkeypatch):
    """The checkpoint is the whole model: its base may have moved in the meantime."""
    settings = config("train.recipe=decoder-only")
    folder = save(move(begin(settings)), tmp_path)
    monkeypatch.setattr("salmacli.checkpoints.pretrained.SalmaModel.build", None)
    assert begin(settings, folder).text_hidden_fcs[0].weight.requires_grad
