"""The public Sa2VA code on the same weights: runs in its own Python, answers one expression per line of its input.

    PYTHON benchmarks/_public_sa2va.py CODE JOB

CODE is the folder with `modeling_sa2va_chat.py`, of a checkout (projects/llava_sam2/hf/models) or of a released model.
JOB is a JSON file: `weights` (folder in the released layout), `frames` (picture files), `answer` that is forced,
`threads`, `device`, `dtype`, `masks` (folder). Once the model stands, "ready" is written; then each line of the input,
a JSON text, is answered by the seconds of one `predict_forward`, and its masks are left in `masks`/<n>.npy.

The public code is taken as it is, but for what it fixes and a benchmark must choose:

- The device. It calls `.cuda()` and names "cuda"; without one these stay on the CPU.
- The size of SAM 2, which is Hiera-L at 1024 in its code; a smaller one is built by handing its classes other numbers.
- The type. It computes in bfloat16 unless told otherwise.
- The answer. Random weights do not speak, so that a logits processor speaks for them.
- `torch.backends.cuda.sdp_kernel`, where torch no longer has it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import types
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

PACKAGE = "public_sa2va"


class Forced(LogitsProcessor):
    """Says what it was given, whatever the model would say."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        said = torch.full_like(scores, -torch.inf)
        said[:, self.ids[min(input_ids.shape[1], len(self.ids) - 1)]] = 0
        return said


def main() -> None:
    code, job = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    replies = sys.stdout
    with redirect_stdout(sys.stderr):  # the public code prints
        torch.set_num_threads(job["threads"])
        model, tokenizer = load(code, Path(job["weights"]), torch.device(job["device"]), getattr(torch, job["dtype"]))
        force(model, tokenizer, job["answer"])
        frames = [Image.open(path).convert("RGB") for path in job["frames"]]
        print("ready", file=replies, flush=True)
        for number, line in enumerate(sys.stdin):
            begin = time.perf_counter()
            said = predict(model, tokenizer, frames, json.loads(line))
            seconds = time.perf_counter() - begin
            np.save(Path(job["masks"]) / f"{number}.npy", said["prediction_masks"][0])
            print(json.dumps(seconds), file=replies, flush=True)


@torch.inference_mode()
def predict(model: Any, tokenizer: Any, frames: list[Image.Image], text: str) -> dict[str, Any]:
    return dict(model.predict_forward(video=frames, text=f"<image>\nPlease segment {text}", tokenizer=tokenizer))


def load(code: Path, weights: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """The released folder in the public classes."""
    config = json.loads((weights / "config.json").read_text())
    stay_at(device)
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(code)]
    sys.modules[PACKAGE] = package
    sam2: Any = importlib.import_module(f"{PACKAGE}.sam2")
    resize(sam2, config["salma"]["sam2"], device)
    classes: Any = importlib.import_module(f"{PACKAGE}.modeling_sa2va_chat")
    model = classes.Sa2VAChatModel(classes.Sa2VAChatConfig(**config))
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(weights.glob("*.safetensors")):
        tensors.update(load_file(file))
    stored = {tensor.dtype for tensor in tensors.values()}
    if len(stored) == 1:
        model.to(stored.pop())  # as `from_pretrained` would, buffers included
    model.load_state_dict(tensors)
    model = model.eval().requires_grad_(False).to(device)
    # Not from_pretrained: an older transformers does not read what a newer one writes beside tokenizer.json.
    said = json.loads((weights / "tokenizer_config.json").read_text())
    special = {name: said[name] for name in ("eos_token", "pad_token")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(weights / "tokenizer.json"), **special)
    model.preparing_for_generation(tokenizer, max_new_tokens=64, torch_dtype=dtype)
    model.extra_image_processor.target_length = config["salma"]["sam2"]["image_size"]
    return model, tokenizer


def stay_at(device: torch.device) -> None:
    """Without a GPU, what asks for one gets the CPU; a torch without `sdp_kernel` chooses its kernels itself."""
    if device.type == "cpu":
        torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor  # type: ignore[method-assign]
    if not hasattr(torch.backends.cuda, "sdp_kernel"):
        torch.backends.cuda.sdp_kernel = lambda **kwargs: nullcontext()  # type: ignore[attr-defined]


def resize(sam2: Any, size: dict[str, Any], device: torch.device) -> None:
    """Hand the public SAM 2's classes other numbers than those in its code."""
    trunk = {
        "embed_dim": size["embed_dim"],
        "num_heads": size["heads"],
        "stages": size["stages"],
        "global_att_blocks": size["global_attention"],
        "window_spec": size["windows"],
        "window_pos_embed_bkg_spatial_size": size["background"],
    }
    sam2.Hiera = with_others(sam2.Hiera, trunk)
    widths = [size["embed_dim"] * 2**stage for stage in (3, 2, 1, 0)]
    sam2.FpnNeck = with_others(sam2.FpnNeck, {"backbone_channel_list": widths})
    predictor = sam2.SAM2VideoPredictor
    start = predictor.init_state

    def init_state(self: Any, images: Any) -> Any:
        return {**start(self, images), "device": device, "storage_device": device}

    predictor.init_state = init_state
    sam2.SAM2VideoPredictor = with_others(predictor, {"image_size": size["image_size"]})


def with_others(made: Callable[..., Any], others: dict[str, Any]) -> Callable[..., Any]:
    return lambda **arguments: made(**{**arguments, **others})


def force(model: Any, tokenizer: Any, answer: str) -> None:
    """Every generation says the answer and ends its turn."""
    ids = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    generate = model.language_model.generate

    def forced(**arguments: Any) -> Any:
        return generate(**arguments, logits_processor=LogitsProcessorList([Forced(ids)]))

    model.language_model.generate = forced


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
