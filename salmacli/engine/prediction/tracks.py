"""What prediction yields: one expression through one video."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

FRAMES_AT_ONCE = 16


@dataclass(frozen=True)
class Track:
    """One expression through one video.

    Attributes:
        text, answer: what was asked and what the LLM said.
        logits: (T, S/4, S/4) float32 mask logits; None when the answer has no `[SEG]`.
        embedding: (C,) projected state at `[SEG]`; None likewise.
        frames: T.
        size: (H, W) of the frames.
        side: S, of SAM 2's frames.
        by_side: whether masks are resized to S × S before they are resized to the frame, as the released Sa2VA does.
    """

    text: str
    answer: str
    logits: Tensor | None
    embedding: Tensor | None
    frames: int
    size: tuple[int, int]
    side: int
    by_side: bool

    def masks(self) -> np.ndarray:
        """(T, H, W) bool: logits resized to the frame, above 0."""
        if self.logits is None:
            return np.zeros((self.frames, *self.size), bool)
        return np.concatenate([self._masks(part) for part in self.logits.split(FRAMES_AT_ONCE)])

    def _masks(self, logits: Tensor) -> np.ndarray:
        steps = [(self.side, self.side), self.size] if self.by_side else [self.size]
        for size in steps:
            logits = resized(logits, size)
        return (logits > 0).cpu().numpy()


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, h, w) mask logits at another size, bilinear."""
    return F.interpolate(logits.unsqueeze(1), size, mode="bilinear", align_corners=False)[:, 0]
