"""A long video in windows, one answer each; where windows overlap, their masks fade into each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# Far below every real logit: SAM 2's own value where there is no object.
NOTHING = -1024.0


@dataclass(frozen=True)
class Window:
    """Frames `start` to `stop` − 1."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def numbers(self) -> range:
        """Its frames."""
        return range(self.start, self.stop)


def windows(total: int, length: int | None, overlap: int) -> list[Window]:
    """Cut `total` frames into as few windows of at most `length` as it takes, all alike; None makes one.

    Neighbours share `overlap` frames.
    """
    if length is None or total <= length:
        return [Window(0, total)]
    count = -(-(total - overlap) // (length - overlap))
    cuts = [round(number * (total - overlap) / count) for number in range(count + 1)]
    return [Window(start, stop + overlap) for start, stop in pairwise(cuts)]


@dataclass
class FrameMasks:
    """The masks of E expressions in one frame.

    Attributes:
        logits: (E, S/4, S/4) float32.
        empty: (E,) bool, whether the model itself left the mask empty.
        filled: (E,) bool, whether a fall-back took its place.
        known: (E,) bool, False where there was no answer to make a mask of.
    """

    logits: Tensor
    empty: Tensor
    filled: Tensor
    known: Tensor

    @classmethod
    def nothing(cls, expressions: int, side: int, device: torch.device) -> FrameMasks:
        """No answer, no mask."""
        yes = torch.ones(expressions, dtype=torch.bool, device=device)
        return cls(torch.full((expressions, side, side), NOTHING, device=device), yes, ~yes, ~yes)


class Fade:
    """Merges what windows say of the frames they share, weighing each by how deep in it a frame lies."""

    def __init__(self, plan: list[Window]) -> None:
        self.plan = plan
        self.sums: dict[int, tuple[FrameMasks, Tensor]] = {}

    def add(self, index: int, number: int, masks: FrameMasks) -> Iterator[tuple[int, FrameMasks]]:
        """Take in one frame of window `index`; yield it as soon as no other window says more about it."""
        sharing = [n for n, window in enumerate(self.plan) if window.start <= number < window.stop]
        if len(sharing) == 1:
            yield number, masks
            return
        weight = self._depth(index, number) * masks.known
        if number in self.sums:
            before, weights = self.sums.pop(number)
            masks = FrameMasks(
                before.logits + weight[:, None, None] * masks.logits,
                before.empty & masks.empty,
                # A fall-back in one window counts where the other window has no mask of its own either.
                (before.filled | masks.filled) & before.empty & masks.empty,
                before.known | masks.known,
            )
            weight = weights + weight
        else:
            masks = FrameMasks(weight[:, None, None] * masks.logits, masks.empty, masks.filled, masks.known)
        if index < sharing[-1]:
            self.sums[number] = masks, weight
            return
        mean = masks.logits / weight.clamp(min=1e-6)[:, None, None]
        logits = torch.where(masks.known[:, None, None], mean, NOTHING)
        yield number, FrameMasks(logits, masks.empty, masks.filled, masks.known)

    def _depth(self, index: int, number: int) -> float:
        """How many frames lie between a frame and the window's nearer end that it shares with another window."""
        window = self.plan[index]
        ends = [number - window.start + 1] if index > 0 else []
        ends += [window.stop - number] if index + 1 < len(self.plan) else []
        return float(min(ends))
