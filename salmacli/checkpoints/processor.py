"""What frames must look like for a model, written beside it for other programs."""

from __future__ import annotations

from typing import Any

from accelerate import init_empty_weights

from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.empty import read_tokenizer
from salmacli.config.schema import ModelConfig
from salmacli.data.collate import MEAN, STD
from salmacli.models.mllm import build_mllm

PROCESSOR = "processor_config.json"


def processor_of(contents: Contents) -> dict[str, Any]:
    """Sizes in pixels, and normalisation of RGB values in [0, 1], for the LLM's frames and for SAM 2's."""
    config = ModelConfig.model_validate(contents.model)
    with init_empty_weights(include_buffers=False):
        mllm = build_mllm(config.mllm, read_tokenizer(contents.tokenizer, "the model"))
    side = config.sam2.image_size
    return {
        "mllm": {**_side(mllm.frame_size, mllm.mean, mllm.std), "tokens_per_frame": mllm.tokens_per_frame},
        "sam2": _side((side, side), MEAN, STD),
    }


def _side(size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    return {
        "size": {"height": size[0], "width": size[1]},
        "keep_aspect": False,
        "image_mean": list(mean),
        "image_std": list(std),
    }
