"""Clips unrolled through SAM 2's memory, with gradients: what prediction's mode `consistent` does, to be learnt.

The first frames of every clip are decoded with language and remembered; each later one is recalled, decoded and
remembered in its turn. Gradients go all the way back: what is said of an object is judged by every frame it led to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from salmacli.data.collate import Batch
from salmacli.models.grounding import Decodable, FrameFeatures, Grounding, Masks
from salmacli.models.memory import Memory, MemoryBank, Recalled, coloured
from salmacli.models.propagation import AsSam2

_PARTS = 4  # tensors of a `Masks`


@dataclass(frozen=True)
class Unrolling:
    """How clips go through the memory.

    Attributes:
        prompted: frames of each clip, the first ones, that are decoded with language.
        checkpoint: compute what lies inside the memory's steps again for the gradients instead of keeping it.
        true_prompts: share of those frames' masks that enter the memory as they should be, not as language made them. A
            memory from scratch hardly learns to carry what is mostly wrong; SAM 2 itself is trained on true masks.
    """

    prompted: int
    checkpoint: bool = False
    true_prompts: float = 0.0


def unrolled(
    grounding: Grounding,
    features: FrameFeatures,
    batch: Batch,
    decode: Callable[[Tensor], Masks],
    how: Unrolling,
) -> Masks:
    """Masks of a batch's P ≥ 1 pairs of frame and object, those of one object in a row, in the order of time.

    Clips with the same number of frames go through the memory together, all objects at once. A clip with fewer frames
    than are prompted is all language.

    Args:
        grounding: SAM 2.
        features: of F frames.
        batch: which frame and which object each mask belongs to, and what is true.
        decode: masks, decoded with language, of the pairs in these rows (N,).
        how: see `Unrolling`.

    Returns:
        P masks. Their logits are the decoder's own also where it takes the object for absent, so that they learn there.
    """
    clips = Clips(grounding, features, batch, decode, how)
    order, masks = zip(*(clips.masks(rows) for rows in _by_length(batch.object_of)), strict=True)
    place = torch.empty_like(batch.object_of)
    place[torch.cat(order)] = torch.arange(len(place), device=place.device)
    return Masks.cat(masks).at(place)


def _by_length(object_of: Tensor) -> Iterator[Tensor]:
    """(O, D) rows of the objects that have D masks each, for every D there is."""
    lengths = torch.bincount(object_of)[object_of]
    for length in lengths.unique().tolist():
        yield (lengths == length).nonzero().view(-1, length)


class Clips:
    """Objects on their way through time; arguments as of `unrolled`."""

    def __init__(
        self,
        grounding: Grounding,
        features: FrameFeatures,
        batch: Batch,
        decode: Callable[[Tensor], Masks],
        how: Unrolling,
    ) -> None:
        self.grounding, self.batch, self.decode, self.how = grounding, batch, decode, how
        self.way = AsSam2(grounding)
        self.position = features.position
        self.sights = self.way.sights(features)

    def masks(self, rows: Tensor) -> tuple[Tensor, Masks]:
        """Masks of (O, D) rows, and the rows in the order of these masks (O·D,)."""
        objects, total = rows.shape
        spoken = self.decode(rows[:, : self.how.prompted].T.flatten())
        found = [spoken]
        if total > self.how.prompted:
            given = {
                time: self._remember(rows[:, time], spoken.at(slice(time * objects, (time + 1) * objects)))
                for time in range(self.how.prompted)
            }
            bank = MemoryBank(self.grounding, given, total)
            for time in range(self.how.prompted, total):
                masks, memory = self._follow(rows[:, time], bank.recall(time))
                bank.follow(time, memory)
                found.append(masks)
        return rows.T.flatten(), Masks.cat(found)

    def _remember(self, rows: Tensor, masks: Masks) -> Memory:
        sight, masks = self.sights.at(self.batch.frame_of[rows]), self._corrected(rows, masks)

        def step(image: Tensor, stride4: Tensor, stride8: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
            memory = self.way.remember(Decodable(image, (stride4, stride8)), Masks(*parts))
            return memory.spatial, memory.pointer

        return Memory(*self._step(step, sight.image, *sight.fine, *masks.parts()))

    def _corrected(self, rows: Tensor, masks: Masks) -> Masks:
        """The masks with the true ones in the place of some, which those are follows from the masks' own seeds."""
        if not self.how.true_prompts:
            return masks
        seeds = self.batch.seeds[rows].tolist()
        drawn = [Random(seed).random() < self.how.true_prompts for seed in seeds]
        size, true = masks.logits.shape[-2:], self.batch.targets[rows].unsqueeze(1).to(masks.logits.dtype)
        share = F.interpolate(true, size, mode="area")[:, 0]
        chosen = torch.tensor(drawn, device=rows.device)[:, None, None]
        return replace(masks, logits=torch.where(chosen, share - 0.5, masks.logits))

    def _follow(self, rows: Tensor, recalled: Recalled) -> tuple[Masks, Memory]:
        sight = self.sights.at(self.batch.frame_of[rows])

        def step(image: Tensor, stride4: Tensor, stride8: Tensor, tokens: Tensor, places: Tensor) -> tuple[Tensor, ...]:
            seen = coloured(self.grounding, image, self.position, Recalled(tokens, places, recalled.pointers))
            masks, memory = self.way.follow(image, Decodable(seen, (stride4, stride8)))
            return *masks.parts(), memory.spatial, memory.pointer

        out = self._step(step, sight.image, *sight.fine, recalled.tokens, recalled.places)
        return Masks(*out[:_PARTS]), Memory(*out[_PARTS:])

    def _step(self, step: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """One step. Its tensors are its arguments: by them torch knows whose random state (dropout) to bring back."""
        if not self.how.checkpoint:
            return step(*tensors)
        out: tuple[Tensor, ...] = checkpoint(step, *tensors, use_reentrant=False)
        return out
