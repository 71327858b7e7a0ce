"""A long video in windows, one answer each; where windows overlap, their masks fade into each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# Far below every real logit: SAM 2's own value where there is no object.
NOTHING = -1024.0
_HARDLY = 1e-6


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
    """Merges what windows say of frames they share: a mean of probabilities, weighed by how deep in each a frame lies.

    Of logits the mean would not do: one window's "absent" is hundreds of times as far from 0 as another's mask.
    """

    def __init__(self, plan: list[Window]) -> None:
        self.plan = plan
        self.sums: dict[int, tuple[FrameMasks, Tensor]] = {}

    def add(self, index: int, number: int, masks: FrameMasks) -> Iterator[tuple[int, FrameMasks]]:
        """Take in one frame of window `index`; yield it as soon as no other window says more about it."""
        sharing = [n for n, window in enumerate(self.plan) if window.start <= number < window.stop]
        if len(sharing) == 1:
            yield number, masks
            return
        # What a fall-back filled in counts only where no window has a mask of its own.
        weight = self._depth(index, number) * masks.known * torch.where(masks.filled, _HARDLY, 1.0)
        sums = weight[:, None, None] * masks.logits.sigmoid()
        merged = FrameMasks(sums, masks.empty, masks.filled, masks.known)
        if number in self.sums:
            before, weights = self.sums.pop(number)
            empty = before.empty & masks.empty
            filled = (before.filled | masks.filled) & empty
            merged = FrameMasks(before.logits + sums, empty, filled, before.known | masks.known)
            weight = weights + weight
        if index < sharing[-1]:
            self.sums[number] = merged, weight
            return
        mean = torch.logit(merged.logits / weight.clamp(min=_HARDLY)[:, None, None], eps=1e-6)
        logits = torch.where(merged.known[:, None, None], mean, NOTHING)
        yield number, FrameMasks(logits, merged.empty, merged.filled, merged.known)

    def _depth(self, index: int, number: int) -> float:
        """How many frames lie between a frame and the window's nearer end that it shares with another window."""
        window = self.plan[index]
        ends = [number - window.start + 1] if index > 0 else []
        ends += [window.stop - number] if index + 1 < len(self.plan) else []
        return float(min(ends))
