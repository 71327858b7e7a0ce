"""What prediction is measured on: models of three sizes with random weights, a video, its expressions."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from salmacli.checkpoints.files.tensors import write_shards
from salmacli.checkpoints.save import contents_of
from salmacli.checkpoints.sources.sa2va import sa2va_folder
from salmacli.config.loading import load_config
from salmacli.config.schema import ModelConfig
from salmacli.models.salma import Salma

HERE = Path(__file__).resolve().parent
MODES = ("frames", "consistent", "sa2va")
ANSWER = "Sure, [SEG]."  # random weights do not speak
TEXTS = [
    f"the {size} {animal} {place}"
    for place in ("on the left", "behind the others")
    for size in ("small", "large")
    for animal in ("cat", "zebra", "bird", "fish")
]
# (H, W) of the frames
PICTURES = {"tiny": (120, 160), "mid": (480, 854), "real": (480, 854)}
# The real proportions (SAM 2's encoder to its memory attention 2 : 1, the LLM with its tower 3 % of the encoder in a
# video of 80 frames) where a core computes 10¹¹ operations a second. What the released Sa2VA fixes stays: SAM 2's
# widths behind the encoder, tiles of 448 pixels and 256 tokens.
MID: dict[str, Any] = {
    "clip_frames": 5,
    "mask_token": "best-of-three",
    "mllm": {
        "vocabulary": 1024,
        "native": {
            "tie_word_embeddings": False,
            "downsample_ratio": 0.5,
            "image_seq_length": 256,
            "vision_config": {
                "hidden_size": 128,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "intermediate_size": 512,
                "image_size": [448, 448],
                "patch_size": [14, 14],
                "attention_bias": True,
                "layer_norm_eps": 1e-6,
            },
            "text_config": {
                "model_type": "qwen2",
                "hidden_size": 256,
                "intermediate_size": 1024,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 4096,
            },
        },
    },
    "sam2": {
        "image_size": 256,
        "embed_dim": 96,
        "heads": 1,
        "stages": (1, 2, 5, 2),
        "global_attention": (4, 6, 7),
        "windows": (8, 4, 14, 7),
    },
}


def config_of(size: str, mode: str) -> ModelConfig:
    """Of a model without a base; with cross-modal attention, but for mode sa2va, whose released model has none."""
    if size == "mid":
        config = ModelConfig.model_validate(MID)
    else:
        config = load_config("tiny" if size == "tiny" else "salma-1b").model
    changed: dict[str, Any] = {
        "mllm": config.mllm.model_copy(update={"base": None}),
        "sam2": config.sam2.model_copy(update={"base": None}),
        "cma": config.cma.model_copy(update={"enabled": mode != "sa2va"}),
        "inference_mode": mode,
    }
    if mode == "sa2va":
        changed["mask_token"] = "best-of-three"
    if mode == "sa2va" and size == "real":  # the public code moves to bfloat16 as a whole
        changed["mllm"] = changed["mllm"].model_copy(update={"rotary": "rounded-frequencies"})
    return config.model_copy(update=changed)


def build(config: ModelConfig, device: torch.device) -> Salma:
    """A model with fresh weights, made on the device; on a GPU in bfloat16, as prediction loads it."""
    torch.manual_seed(0)
    with device:
        model = Salma.build(config, TEXTS)
    if device.type == "cuda":
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    return model.eval().requires_grad_(False)


def video(count: int, size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Frames (H, W, 3) of discs that drift over a gradient."""
    height, width = size
    rows, columns = np.mgrid[:height, :width].astype(np.float32) / height
    frames = []
    for number in range(count):
        frame = np.stack([60 + 100 * rows, 90 + 40 * columns, 120 - 80 * rows], axis=-1)
        for disc in range(4):
            turn = 0.7 * disc + 0.03 * number
            middle = 0.5 + 0.3 * np.sin(turn), 0.5 * width / height * (1 + 0.6 * np.cos(1.3 * turn + disc))
            inside = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < 0.01 * (1 + disc)
            frame[inside] = np.roll([230, 60, 20 + 60 * disc], disc)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return frames


class Public:
    """The public code in a process of its own, with the weights of a model of ours; a context.

    Args:
        model: its weights are written in the released layout.
        frames: the video.
        scratch: an empty folder.
        options: `public`, `public_python`, `threads`.
    """

    def __init__(
        self, model: Salma, frames: list[NDArray[np.uint8]], scratch: Path, options: argparse.Namespace
    ) -> None:
        weights, pictures, self.left = (scratch / name for name in ("weights", "frames", "masks"))
        for folder in (weights, pictures, self.left):
            folder.mkdir()
        header, tensors, files = sa2va_folder(contents_of(model, config={}, step=0))
        write_shards(weights, tensors)
        (weights / "config.json").write_text(json.dumps(header))
        for name, data in files.items():
            (weights / name).write_bytes(data)
        paths = [pictures / f"{number:05d}.png" for number in range(len(frames))]
        for path, frame in zip(paths, frames, strict=True):
            Image.fromarray(frame).save(path, compress_level=1)
        job = {
            "weights": str(weights),
            "frames": [str(path) for path in paths],
            "answer": ANSWER,
            "threads": options.threads,
            "device": model.device.type,
            "dtype": "bfloat16" if model.device.type == "cuda" else "float32",
            "masks": str(self.left),
        }
        (scratch / "job.json").write_text(json.dumps(job))
        driver = str(HERE / "_public_sa2va.py")
        self.command = [options.public_python, driver, str(options.public.resolve()), str(scratch / "job.json")]
        self.log = scratch / "public.log"
        self.asked = 0

    def __enter__(self) -> Public:
        pipe = subprocess.PIPE
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, cwd=self.left, stdin=pipe, stdout=pipe, stderr=log, text=True)
        self._reply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def masks(self, texts: list[str]) -> list[NDArray[np.bool_]]:
        """Predict the texts one after the other, as the public code's users do: (T, H, W) each."""
        assert self.process.stdin is not None
        found = []
        for text in texts:
            self.process.stdin.write(json.dumps(text) + "\n")
            self.process.stdin.flush()
            self._reply()
            found.append(np.load(self.left / f"{self.asked}.npy"))
            self.asked += 1
        return found

    def _reply(self) -> None:
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise SystemExit(f"the public code ended with {self.process.wait()}: {self.log.read_text()[-2000:]}")
