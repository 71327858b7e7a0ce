"""What prediction yields: one expression through one video, collected frame by frame as run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from salmacli.data import rle
from salmacli.engine.prediction.batches import BatchSize
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

    A frame is on its way to the host while the device goes on with the next one.

    Args:
        expressions: E.
        frames: T.
        size: (H, W) of the frames.
        through: a side S through which masks pass on their way to the frame's size; None: straight.
        keep_logits: keep all logits on the host, too.
        batch: masks that are resized at once.
    """

    def __init__(
        self,
        expressions: int,
        frames: int,
        size: tuple[int, int],
        through: int | None,
        keep_logits: bool,
        batch: BatchSize,
    ) -> None:
        self.size, self.through, self.batch = size, through, batch
        self.counts = [[""] * frames for _ in range(expressions)]
        self.empty = np.zeros((expressions, frames), bool)
        self.filled = np.zeros((expressions, frames), bool)
        self.known = np.zeros(expressions, bool)
        self.keep_logits = keep_logits
        self.logits: np.ndarray | None = None
        self._frames = frames
        self._waiting: _OnTheWay | None = None

    def put(self, number: int, masks: FrameMasks) -> None:
        """Take in one frame."""
        pictures = torch.cat(list(self.batch.over(len(masks.logits), lambda part: self._pictures(masks.logits[part]))))
        flags = torch.stack([masks.empty, masks.filled, masks.known])
        coming = _OnTheWay(number, pictures, flags, masks.logits if self.keep_logits else None)
        self.finish()
        self._waiting = coming

    def _pictures(self, logits: Tensor) -> Tensor:
        """(P, W, H) bool: columns first, as COCO's runs go, and a device turns pictures faster than the host."""
        square = resized(logits, (self.through, self.through)) if self.through else logits
        return (resized(square, self.size) > 0).transpose(1, 2).contiguous()

    def finish(self) -> None:
        """Turn the frame that waits into run lengths."""
        if self._waiting is None:
            return
        number, pictures, flags, logits = self._waiting.arrived()
        self._waiting = None
        some = pictures.any(axis=(1, 2))
        empty, filled, known = flags
        # A mask of less than a pixel vanishes when it is resized.
        self.empty[:, number], self.filled[:, number] = empty | ~some, filled & some
        self.known |= known
        for counts, picture in zip(self.counts, pictures, strict=True):
            counts[number] = rle.encode(picture.T)["counts"]
        if logits is not None:
            if self.logits is None:
                self.logits = np.zeros((len(self.counts), self._frames, *logits.shape[1:]), np.float32)
            self.logits[:, number] = logits

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


class _OnTheWay:
    """Tensors that go to the host without anyone waiting for them."""

    def __init__(self, number: int, pictures: Tensor, flags: Tensor, logits: Tensor | None) -> None:
        self.number = number
        kept = (pictures, flags) if logits is None else (pictures, flags, logits)
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in kept]
        self._event = torch.cuda.Event() if pictures.is_cuda else None
        if self._event is not None:
            self._event.record()

    def arrived(self) -> tuple[int, np.ndarray, np.ndarray, np.ndarray | None]:
        """Number, pictures, flags and logits, if any."""
        if self._event is not None:
            self._event.synchronize()
        arrays = [tensor.numpy() for tensor in self._tensors]
        return self.number, arrays[0], arrays[1], arrays[2] if len(arrays) > 2 else None


def reason_of(found: Sequence[bool], several: Sequence[bool], empty: np.ndarray) -> Reason | None:
    """Why a fall-back was due, from what each window's answer held and each frame's emptiness; the first that holds."""
    if not all(found):
        return "no-seg"
    if any(several):
        return "several-seg"
    return "empty" if empty.all() else None
