"""Tiny files in the exact layouts that users bring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

Training = Callable[..., dict[str, Any]]
ALPHA, RANK = 8.0, 4
# Of Qwen and of InternLM2.
_LINEAR = (*(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")), "wqkv", "wo", ".w1", ".w2", ".w3")
_VOCABULARY = ("embed_tokens.weight", "lm_head.weight", "tok_embeddings.weight", "language_model.output.weight")


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released Sa2VA in bf16. Shared: copy what you change."""
    return _released(tmp_path_factory.mktemp("released") / "Sa2VA-tiny")


@pytest.fixture(scope="session")
def internlm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose language model is an InternLM2, with its fused attention and names of its own. Shared, too."""
    llm = "model.mllm.native.text_config"
    kind = [f"{llm}.model_type=llama", f"{llm}.architectures=[InternLM2ForCausalLM]"]
    return _released(tmp_path_factory.mktemp("internlm2") / "Sa2VA-tiny", *kind)


def _released(folder: Path, *settings: str) -> Path:
    from salmacli.checkpoints.files.lazy import LazyTensor
    from salmacli.checkpoints.files.tensors import write_shards
    from salmacli.checkpoints.save import contents_of
    from salmacli.checkpoints.sources.sa2va import sa2va_folder
    from salmacli.config.loading import load_config
    from salmacli.models.salma import Salma

    torch.manual_seed(1)
    sizes = ["model.inference_mode=sa2va", "model.mask_token=best-of-three", "model.clip_frames=5"]
    config = load_config("tiny", [*sizes, "model.sam2.embed_dim=16", "model.sam2.width=64", *settings]).model
    model = Salma.build(config, ["the red circle"]).to(torch.bfloat16)
    folder.mkdir()
    header, tensors, tokenizer = sa2va_folder(contents_of(model, config={}, step=0))
    write_shards(folder, {name: LazyTensor.of(tensor.read()) for name, tensor in tensors.items()})
    (folder / "config.json").write_text(json.dumps(header))
    for name, data in tokenizer.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def training(released: Path) -> Training:
    """A function that gives what a training file on top of `released`, or of another such folder, holds."""

    def content(
        version: str = "v2", seed: int = 0, rank: int = RANK, noise: float = 0.1, folder: Path = released
    ) -> dict[str, Any]:
        random = torch.Generator().manual_seed(seed)
        base = load_file(folder / "model.safetensors")

        def moved(tensor: Tensor) -> Tensor:
            scale = noise * (tensor.float().std(correction=0) + 0.01)
            return tensor.float() + scale * torch.randn(tensor.shape, generator=random)

        found: dict[str, Tensor] = {}
        saved = ".modules_to_save.default" if version == "v2" else ""
        for name, tensor in base.items():
            module, _, kind = name.rpartition(".")
            if module.startswith("language_model.") and module.endswith(_LINEAR) and kind == "weight":
                place = f"mllm.model.language_model.base_model.model.{module.removeprefix('language_model.')}"
                up, down = (len(tensor), rank), (rank, tensor.shape[1])
                found[f"{place}.lora_A.default.weight"] = 0.05 * torch.randn(down, generator=random)
                found[f"{place}.lora_B.default.weight"] = noise * torch.randn(up, generator=random)
            elif name.endswith(_VOCABULARY):
                place = f"mllm.model.language_model.base_model.model.{module.removeprefix('language_model.')}"
                found[f"{place}{saved}.weight"] = moved(tensor)
            elif name.startswith("mlp1."):
                found[f"mllm.model.{name}"] = moved(tensor)
            elif name.startswith(("grounding_encoder.sam2_model.sam_mask_decoder.", "text_hidden_fcs.")):
                found[name] = moved(tensor)
        return {"state_dict": found, "meta": {"epoch": 1, "iter": 120}, "param_schedulers": []}

    return content


@pytest.fixture(scope="session")
def sam2_file(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes the SAM 2 that `released` was made of: in float32, with a mask decoder of its own.

    ``noise`` is how far that decoder is from the released one, ``change`` may alter what is written. The sizes lie in
    ``sizes.json`` beside the file.
    """

    def write(noise: float = 0.1, change: Callable[[dict[str, Tensor]], object] | None = None) -> Path:
        prefix, random = "grounding_encoder.sam2_model.", torch.Generator().manual_seed(5)
        tensors: dict[str, Tensor] = {}
        for name, tensor in load_file(released / "model.safetensors").items():
            if name.startswith(prefix):
                own = name.removeprefix(prefix).replace(".g_weight", ".gamma")
                # Less than half of bfloat16's last digit: the released model is this one, rounded.
                digits = 1 + (torch.rand(tensor.shape, generator=random) - 0.5) / 1024
                tensors[own] = tensor.float() * digits
                if own.startswith("sam_mask_decoder."):
                    scale = noise * (tensor.float().abs().mean() + 0.01)
                    tensors[own] += scale * torch.randn(tensor.shape, generator=random)
        if change is not None:
            change(tensors)
        folder = tmp_path_factory.mktemp("sam2")
        torch.save({"model": tensors}, folder / "sam2.pt")
        sizes = json.loads((released / "config.json").read_text())["salma"]["sam2"]
        # As of a checkpoint that has two: these files have one all the same.
        (folder / "sizes.json").write_text(json.dumps({**sizes, "two_decoders": True}))
        return folder / "sam2.pt"

    return write


@pytest.fixture
def training_file(training: Training, tmp_path: Path) -> Path:
    """One such file."""
    torch.save(training(), tmp_path / "iter_120.pth")
    return tmp_path / "iter_120.pth"
