"""What prediction yields: one expression through one video, collected frame by frame as run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from salmacli.data import rle
from salmacli.engine.prediction.windows import FrameMasks

Reason = Literal["no-seg", "several-seg", "empty"]


@dataclass(frozen=True)
class Track:
    """One expression through one video.

    Attributes:
        text: what was asked.
        answers: what the LLM said of each window.
        size: (H, W) of the frames.
        counts: COCO counts per frame, after fall-backs.
        reason: why a fall-back was due: an answer without `[SEG]`; one with several (the first is used); no mask in any
            frame.
        empty: frames whose mask the model left empty.
        filled: how many of those the fall-back filled.
        logits: (T, S/4, S/4) float32 mask logits where they were asked for and there are any.
        embedding: (C,) projected state at `[SEG]` of the first window that has one; None without.
        side: S, of SAM 2's frames.
        by_side: whether masks are resized to S × S before they are resized to the frame, as the released Sa2VA does.
    """

    text: str
    answers: tuple[str, ...]
    size: tuple[int, int]
    counts: list[str]
    reason: Reason | None
    empty: int
    filled: int
    logits: np.ndarray | None
    embedding: Tensor | None
    side: int
    by_side: bool

    @property
    def answer(self) -> str:
        """What the LLM said; of several windows, of the first."""
        return self.answers[0]

    def mask(self, frame: int) -> np.ndarray:
        """(H, W) bool."""
        return rle.decode({"size": list(self.size), "counts": self.counts[frame]})

    def masks(self) -> np.ndarray:
        """(T, H, W) bool."""
        return np.stack([self.mask(frame) for frame in range(len(self.counts))])


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, h, w) mask logits at another size, bilinear."""
    return F.interpolate(logits.unsqueeze(1), size, mode="bilinear", align_corners=False)[:, 0]


class Recorder:
    """Collects the masks of E expressions, frame by frame in any order.

    A frame is resized and on its way to the host while the device goes on with the next one.

    Args:
        expressions: E.
        frames: T.
        size: (H, W) of the frames.
        through: a side S through which masks pass on their way to the frame's size; None: straight.
        keep_logits: keep all logits on the host, too.
    """

    def __init__(
        self, expressions: int, frames: int, size: tuple[int, int], through: int | None, keep_logits: bool
    ) -> None:
        self.size, self.through, self.keep_logits = size, through, keep_logits
        self.counts = [[""] * frames for _ in range(expressions)]
        self.empty = np.zeros((expressions, frames), bool)
        self.filled = np.zeros((expressions, frames), bool)
        self.known = np.zeros(expressions, bool)
        self.logits: np.ndarray | None = None
        self._frames = frames
        self._waiting: tuple[int, FrameMasks, Tensor] | None = None

    def put(self, number: int, masks: FrameMasks) -> None:
        """Take in one frame."""
        flat = resized(resized(masks.logits, (self.through,) * 2) if self.through else masks.logits, self.size) > 0
        # Columns first: so COCO's runs go, and a device turns pictures faster than the host.
        self._settle()
        self._waiting = number, masks, flat.transpose(1, 2).contiguous()

    def _settle(self) -> None:
        """Bring the frame that waits to the host, as run lengths."""
        if self._waiting is None:
            return
        number, masks, flat = self._waiting
        pictures = flat.cpu().numpy()
        self.filled[:, number] = masks.filled.cpu().numpy()
        # A mask of less than a pixel vanishes when it is resized, and is empty, too.
        self.empty[:, number] = masks.empty.cpu().numpy() | ~pictures.any(axis=(1, 2))
        self.known |= masks.known.cpu().numpy()
        for counts, picture in zip(self.counts, pictures, strict=True):
            counts[number] = rle.encode(picture.T)["counts"]
        if self.keep_logits:
            if self.logits is None:
                shape = (len(self.counts), self._frames, *masks.logits.shape[1:])
                self.logits = np.zeros(shape, np.float32)
            self.logits[:, number] = masks.logits.cpu().numpy()
        self._waiting = None

    def finish(self) -> None:
        """No frame follows."""
        self._settle()

    def repeat_previous(self) -> None:
        """Fill every empty mask with that of the frame before."""
        for counts, empty, filled, number in zip(
            self.counts, self.empty, self.filled, range(len(self.counts)), strict=True
        ):
            for before, frame in pairwise(range(self._frames)):
                if empty[frame] and (filled[before] or not empty[before]):
                    counts[frame], filled[frame] = counts[before], True
                    if self.logits is not None:
                        self.logits[number, frame] = self.logits[number, before]

    def logits_of(self, expression: int) -> np.ndarray | None:
        """(T, S/4, S/4) of one expression; None where they were not kept, or nothing was ever decoded for it."""
        return self.logits[expression] if self.logits is not None and self.known[expression] else None


def reason_of(found: Sequence[bool], several: Sequence[bool], empty: np.ndarray) -> Reason | None:
    """Why a fall-back was due, from what each window's answer held and each frame's emptiness."""
    if not all(found):
        return "no-seg"
    if any(several):
        return "several-seg"
    return "empty" if empty.all() else None
