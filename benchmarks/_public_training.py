"""The public Sa2VA training code on the same weights and batch: runs in its own Python, prints one JSON object.

    PYTHON benchmarks/_public_training.py CODE JOB

CODE is a checkout of Sa2VA with `projects/llava_sam2`, `third_parts` and `vlm`. PYTHON has the packages that it needs:
transformers 4, a peft of its time, mmengine, xtuner 0.2, hydra, pycocotools; mmcv is not needed (see below).
JOB is a JSON file: `weights` (folder in the released layout), `batch` (of torch.save: `data` as its collate function
makes it), `sam2` (hydra's overrides of its size), `points`, `lora` (r, lora_alpha, lora_dropout), `steps`, `threads`,
`device`, `dtype`.

The model is `VideoLLaVASAMModel_zero3` with the settings of its own configs (sa2va_1b.py), the optimiser AdamW in
mmengine's wrapper. The code is taken as it is, but for what it fixes and a benchmark must choose:

- The weights. Its MLLM is built by transformers' remote code from OpenGVLab's folder; here by the classes that the
  same repository ships for its released models, with the same names.
- The size of SAM 2, which is Hiera-L at 1024 in its YAML; a smaller one by hydra's overrides.
- The attention kernel, which is flash attention 2 there; here PyTorch's own.
- `mmcv.ops.point_sample`, where mmcv is not installed: bilinear `grid_sample` at points in [0, 1].
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import types
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _live_bytes import LiveBytes
from _public_sa2va import PACKAGE, stay_at
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

SAM2, PROJECTOR = "grounding_encoder.sam2_model.", "text_hidden_fcs."
NEW_TOKENS = ["[SEG]", "<p>", "</p>", "<vp>", "</vp>"]


def main() -> None:
    code, job = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    reply = sys.stdout
    with redirect_stdout(sys.stderr):  # the public code prints
        torch.set_num_threads(job["threads"])
        device, dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
        sys.path.insert(0, str(code))
        without_mmcv()
        stay_at(device)
        model = build(code, job, device, dtype)
        answer = measure(model, job, device, dtype)
    print(json.dumps(answer), file=reply)


def build(code: Path, job: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """The training model with the weights of the released folder."""
    from projects.llava_sam2.models import SAM2TrainRunner, VideoLLaVASAMModel_zero3, internvl, sam2_train
    from third_parts.mmdet.models.losses import CrossEntropyLoss, DiceLoss

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(Path(job["weights"]).glob("*.safetensors")):
        weights.update(load_file(file))
    # Their own conversion names it so, because transformers renames whatever is called gamma.
    sam2 = {
        name.removeprefix(SAM2).replace("g_weight", "gamma"): one.float()
        for name, one in weights.items()
        if name.startswith(SAM2)
    }
    projector = {name.removeprefix(PROJECTOR): one for name, one in weights.items() if name.startswith(PROJECTOR)}
    sam2_train.load_checkpoint_with_prefix = lambda *_: sam2
    mllm, tokenizer = released(code, Path(job["weights"]), weights)
    mllm.to(dtype)  # as its own call of from_pretrained leaves it: bfloat16 wherever there is a GPU
    sections = types.SimpleNamespace(llm_config=types.SimpleNamespace(model_type="other"))
    internvl.AutoConfig = types.SimpleNamespace(from_pretrained=lambda *_, **__: sections)
    internvl.AutoModel = types.SimpleNamespace(from_pretrained=lambda *_, **__: mllm)
    internvl.AutoTokenizer = types.SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer)
    model = VideoLLaVASAMModel_zero3(
        mllm={
            "type": internvl.InternVL_Slowfast,
            "model_path": "",
            "freeze_llm": True,
            "freeze_visual_encoder": True,
            "llm_lora": lora(job["lora"]),
            "special_tokens": NEW_TOKENS,
        },
        tokenizer={"type": lambda: tokenizer},
        grounding_encoder={"type": SAM2TrainRunner, "hydra_overrides_extra": job["sam2"]},
        loss_mask={"type": CrossEntropyLoss, "use_sigmoid": True, "reduction": "mean", "loss_weight": 2.0},
        loss_dice={
            "type": DiceLoss,
            "use_sigmoid": True,
            "activate": True,
            "reduction": "mean",
            "naive_dice": True,
            "eps": 1.0,
            "loss_weight": 0.5,
        },
        special_tokens=NEW_TOKENS,
        torch_dtype=dtype,
        frozen_sam2_decoder=False,
        loss_sample_points=True,
        num_points=job["points"],
        bs=2,
    )
    model.text_hidden_fcs.load_state_dict(projector)
    return model.to(device).train()


def released(code: Path, folder: Path, weights: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    """The MLLM of the released classes, and its tokenizer."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(code / "projects/llava_sam2/hf/models")]
    sys.modules[PACKAGE] = package
    classes: Any = importlib.import_module(f"{PACKAGE}.modeling_sa2va_chat")
    classes.SAM2 = lambda: types.SimpleNamespace(hidden_dim=1)  # the training code has its own
    model = classes.Sa2VAChatModel(classes.Sa2VAChatConfig(**json.loads((folder / "config.json").read_text())))
    del model.text_hidden_fcs
    model.language_model.config._attn_implementation = "sdpa"
    model.load_state_dict({name: one for name, one in weights.items() if not name.startswith((SAM2, PROJECTOR))})
    # Not from_pretrained: an older transformers does not read what a newer one writes beside tokenizer.json.
    said = json.loads((folder / "tokenizer_config.json").read_text())
    special = {name: said[name] for name in ("eos_token", "pad_token")}
    return model, PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)


def lora(settings: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(**settings, bias="none", task_type="CAUSAL_LM")


def measure(model: Any, job: dict[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Seconds of every step, or the peak of the bytes that live while one runs."""
    from mmengine.optim import AmpOptimWrapper, OptimWrapper

    adamw = torch.optim.AdamW(
        [one for one in model.parameters() if one.requires_grad], lr=4e-5, betas=(0.9, 0.999), weight_decay=0.05
    )
    clip = {"max_norm": 1, "error_if_nonfinite": False}
    cuda = device.type == "cuda"
    mixed = {"dtype": "bfloat16", "loss_scale": "dynamic"}
    optimizer = (
        AmpOptimWrapper(optimizer=adamw, clip_grad=clip, **mixed) if cuda else OptimWrapper(adamw, clip_grad=clip)
    )
    batch = torch.load(job["batch"])
    losses: dict[str, float] = {}

    def step() -> None:
        # As mmengine's train_step does it.
        with optimizer.optim_context(model):
            parts = model(moved(batch, device, dtype), mode="loss")
            total, _ = model.parse_losses(parts)
        losses.update({name: float(value.detach()) for name, value in parts.items()})
        optimizer.update_params(total)

    step()
    found = {
        "first_losses": dict(losses),
        "trained": sum(one.numel() for one in model.parameters() if one.requires_grad),
        **timed(step, job["steps"], device),
    }
    return found | {"peak_bytes": peak(step, model, adamw, device)}


def moved(batch: dict[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """A fresh copy: the model takes the batch apart, and normalises its frames in place."""
    copied: dict[str, Any] = {}
    for name, value in batch.items():
        many = value if isinstance(value, list) else [value]
        tensors = [one.to(device).clone() if isinstance(one, torch.Tensor) else one for one in many]
        copied[name] = tensors if isinstance(value, list) else tensors[0]
    return copied


def timed(step: Callable[[], None], count: int, device: torch.device) -> dict[str, Any]:
    """Seconds of each of so many steps."""
    # On the CPU the processor's own time: neighbours on the machine do not change it.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = []
    for _ in range(count):
        begin = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - begin)
    return {"seconds": seconds}


def peak(step: Callable[[], None], model: Any, adamw: torch.optim.Optimizer, device: torch.device) -> int:
    """The most bytes of tensors that are alive at once while one step runs: weights, gradients, states, activations."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return int(torch.cuda.max_memory_allocated())
    with LiveBytes() as live:
        live.hold(
            [list(model.parameters()), list(model.buffers()), [list(one.values()) for one in adamw.state.values()]]
        )
        step()
    return live.peak


def without_mmcv() -> None:
    """Its one function that is used, where the package is missing."""
    try:
        import mmcv.ops  # noqa: F401
    except ImportError:
        package, ops = types.ModuleType("mmcv"), types.ModuleType("mmcv.ops")
        ops.point_sample = point_sample  # type: ignore[attr-defined]
        package.ops = ops  # type: ignore[attr-defined]
        sys.modules.update({"mmcv": package, "mmcv.ops": ops})


def point_sample(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(P, C, h, w) at (P, N, 2) points in [0, 1]: (P, C, N)."""
    return F.grid_sample(maps, 2 * points.unsqueeze(2) - 1, align_corners=False).squeeze(3)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
