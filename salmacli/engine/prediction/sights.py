"""What the two encoders and the LLM are shown of a video in each mode of prediction.

`sa2va` shows what the released Sa2VA shows, down to its rounding; the other modes show what training showed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from salmacli.data.collate import MEAN, STD, to_pixels
from salmacli.data.templates import ASKED, QUESTIONS, questions
from salmacli.data.tiles import bicubic, shown_of, tiles
from salmacli.models.salma import Salma

Mode = Literal["frames", "consistent", "sa2va"]


@dataclass(frozen=True)
class Shown:
    """What the LLM sees.

    Attributes:
        pixels: (N, 3, h, w) frames or tiles, normalised.
        pictures: placeholders of each picture of the conversation; the tiles of one frame are one picture.
    """

    pixels: Tensor
    pictures: tuple[int, ...]


def to_language(model: Salma, mode: Mode, frames: Sequence[np.ndarray], still: bool) -> Shown:
    """What the LLM sees of the key frames of a video, or of a picture when `still`: K times uint8 (H, W, 3)."""
    mllm = model.mllm
    height, width = mllm.frame_size
    if mode == "sa2va":
        parts = tiles(frames[0], height) if still else [bicubic(frame, height, width) for frame in frames]
        pixels = _normalised(parts, mllm.mean, mllm.std)
    else:
        parts = shown_of(frames[0], height, model.tiles) if still else list(frames)
        pixels = to_pixels(parts, mllm.frame_size, mllm.mean, mllm.std)
    pictures = (len(parts) * mllm.tokens_per_frame,) if still else (mllm.tokens_per_frame,) * len(parts)
    return Shown(pixels, pictures)


def to_sam2(model: Salma, mode: Mode, frames: Sequence[np.ndarray]) -> Tensor:
    """What SAM 2 sees: (T, 3, S, S)."""
    side = model.config.sam2.image_size
    if mode == "sa2va":
        # The released code keeps the mean and the deviation in bfloat16.
        mean, std = (torch.tensor(value, dtype=torch.bfloat16).float().tolist() for value in (MEAN, STD))
        return _normalised([bicubic(frame, side, side) for frame in frames], mean, std)
    return to_pixels(frames, (side, side))


def question(mode: Mode, expression: str) -> str:
    """The template that the LLM is asked with: the first one of training, or what the released Sa2VA asks."""
    if mode == "sa2va":
        return ASKED[0] if "?" in expression else QUESTIONS[0]
    return questions(expression)[0]


def _normalised(frames: Sequence[np.ndarray], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """F times uint8 (h, w, 3), all of one size → (F, 3, h, w)."""
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
