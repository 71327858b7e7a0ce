"""The frozen LLM in few bits. Needs bitsandbytes, which the CPU lane does not install: those tests skip without it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from salmacli.checkpoints.adapted import fingerprint
from salmacli.checkpoints.load import load_checkpoint
from salmacli.checkpoints.pretrained import SalmaModel
from salmacli.checkpoints.resume import model_to_train
from salmacli.checkpoints.save import Weights, save_checkpoint
from salmacli.config.loading import load_config
from salmacli.config.schema import RunConfig
from salmacli.errors import ConfigError
from salmacli.models.quantize import dense, is_quantized
from salmacli.models.salma import Salma
from salmacli.models.trained import prepare_training

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra")


def config(bits: str, *assignments: str) -> RunConfig:
    own = [f"train.quantize={bits}", "train.recipe=lora", "train.lora.rank=4", "train.lora.alpha=8"]
    return load_config("tiny", [*own, *assignments])


def begin(settings: RunConfig, resume: Path | None = None) -> Salma:
    torch.manual_seed(0)
    return model_to_train(settings, ["the red circle"], resume, bf16=False).eval()


def words(model: Salma) -> torch.Tensor:
    ids = torch.arange(40)[None]
    seen = torch.ones(1, 40, 40, dtype=torch.bool).tril()
    return model.mllm.vocabulary_logits(model.mllm(ids, None, seen, torch.arange(40)[None]))


def test_without_bitsandbytes_the_mend_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"train.quantize = '4bit', but bitsandbytes is not installed") as caught:
        begin(config("4bit"))
    assert 'pip install "salma[quant]"' in str(caught.value)


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "off", "rounded"), [("8bit", 0.02, 0.05), ("4bit", 0.3, 1e-4)])
def test_few_bits_say_nearly_the_same_and_the_checkpoint_exactly(bits, off, rounded, tmp_path):
    exact, settings = (
        begin(load_config("tiny", ["train.recipe=lora"])),
        config(bits, "train.lora.modules=[q_proj, v_proj]"),
    )
    model = begin(settings)
    layers = {name: module for name, module in model.named_modules() if is_quantized(module)}
    assert len(layers) == 7 * 2, "adapted or not"
    for name, module in layers.items():
        weight = exact.get_submodule(name.replace(".base_layer", "")).weight
        assert 0 < (dense(module) - weight).abs().max() < off
    words(model).square().sum().backward()
    assert model.mllm.model.model.language_model.layers[0].self_attn.q_proj.lora_B.default.weight.grad.abs().sum() > 0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    save_checkpoint(
        tmp_path / "s", model, config={}, step=1, trainer_state={}, weights=Weights(frozen=fingerprint(model))
    )
    plain, again = load_checkpoint(tmp_path / "s")[0], begin(settings, tmp_path / "s")
    with torch.no_grad():
        # 8-bit layers round what they read, too.
        assert torch.allclose(words(plain), words(model), atol=rounded)
        assert torch.equal(words(again), words(model))


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "share"), [("8bit", 1), ("4bit", 0.5)])
def test_a_model_without_memory_has_the_sizes_of_one_with(bits, share):
    settings = config(bits)
    model = SalmaModel.outline(settings.model, ["the red circle"])
    prepare_training(model, settings, bf16=True)
    weight = model.mllm.model.model.language_model.layers[0].mlp.up_proj.get_base_layer().weight
    assert weight.is_meta and weight.numel() * weight.element_size() == 128 * 256 * share
