"""Masks carried from frame to frame: what is remembered of a frame that has a mask, and how a later one is decoded.

There are two ways: SAM 2's own, and that of the released Sa2VA.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from sam2.modeling.sam2_base import NO_OBJ_SCORE
from torch import Tensor

from salmacli.models.grounding import Decodable, FrameFeatures, Grounding, Masks
from salmacli.models.memory import Memory, enlarged, memorise, pointer_of, without_absent

# SAM 2 treats a given mask as if it had predicted it with these logits.
_GIVEN = 10.0


class Propagation(ABC):
    """One way to carry masks.

    Args:
        grounding: SAM 2.
    """

    def __init__(self, grounding: Grounding) -> None:
        self.grounding = grounding

    def sights(self, features: FrameFeatures) -> Decodable:
        """F frames as the decoder of this way reads them, not coloured by memory yet; once for all objects."""
        return Decodable(features.stride16, self.grounding.fine_levels(features, self.grounding.propagator))

    def seen(self, masks: Masks) -> Tensor:
        """(O, S/4, S/4) float32 logits of what followed, as they are told and remembered."""
        return masks.logits.float()

    @abstractmethod
    def remember(self, sight: Decodable, masks: Masks) -> Memory:
        """The memory of a frame that was decoded with language.

        Args:
            sight: the frame, 1 or O rows.
            masks: of O objects.
        """

    @abstractmethod
    def follow(self, image: Tensor, rows: Decodable) -> tuple[Masks, Memory]:
        """Decode a frame that was recalled.

        Args:
            image: (1 or O, C, S/16, S/16) features of the frame.
            rows: the same as memory colours it, O rows.

        Returns:
            The masks, and what is remembered.
        """


class AsSam2(Propagation):
    """SAM 2's own way.

    A mask that is given enters the memory binarised; so that what follows is what SAM 2 was trained on, its original
    decoder propagates where a checkpoint carries it.
    """

    def seen(self, masks: Masks) -> Tensor:
        """See `Propagation`; SAM 2's own value where the object is absent."""
        logits = super().seen(masks)
        if not self.grounding.pred_obj_scores:
            return logits
        return torch.where(masks.presence.unsqueeze(-1) > 0, logits, NO_OBJ_SCORE)

    def remember(self, sight: Decodable, masks: Masks) -> Memory:
        """See `Propagation`."""
        grounding = self.grounding
        given = binarised(enlarged(grounding, masks.logits))
        hint = grounding.mask_downsample(given.unsqueeze(1).to(grounding.no_mem_embed.dtype))
        rows = Decodable.of(sight.image.expand(len(given), -1, -1, -1), sight.fine)
        said = grounding.decode(rows, None, False, decoder=grounding.propagator, mask=hint)
        pointer = pointer_of(grounding, said.token, said.presence > 0)
        present = (given > 0).flatten(1).any(dim=1, keepdim=True)
        pointer = without_absent(grounding, pointer, present)
        outside, inside = (given.new_full((), logit).sigmoid() for logit in (-_GIVEN, _GIVEN))
        return memorise(grounding, sight.image, torch.lerp(outside, inside, given), present, pointer)

    def follow(self, image: Tensor, rows: Decodable) -> tuple[Masks, Memory]:
        """See `Propagation`."""
        grounding = self.grounding
        best_of_three = bool(grounding._use_multimask(False, None))
        masks = grounding.decode(rows, None, best_of_three, decoder=grounding.propagator)
        present, shares = masks.presence > 0, enlarged(grounding, self.seen(masks)).sigmoid()
        pointer = pointer_of(grounding, masks.token, present)
        return masks, memorise(grounding, image, shares, present, pointer)


class AsSa2va(Propagation):
    """The released Sa2VA's way.

    Mask logits are never replaced where the object seems absent, the logits themselves (not a binarised mask) of the
    language-prompted frames enter the memory, memories are rounded to bfloat16, and the one decoder does all. Facts
    from bytedance/Sa2VA, checked on its outputs.

    Args:
        grounding: SAM 2.
        best_of_three: as in `Grounding.decode`, for the frames that follow.
    """

    def __init__(self, grounding: Grounding, best_of_three: bool) -> None:
        super().__init__(grounding)
        self.best_of_three = best_of_three

    def sights(self, features: FrameFeatures) -> Decodable:
        """See `Propagation`."""
        return Decodable(features.stride16, self.grounding.fine_levels(features, self.grounding.sam_mask_decoder))

    def remember(self, sight: Decodable, masks: Masks) -> Memory:
        """See `Propagation`."""
        return self._remember(sight.image, masks)

    def follow(self, image: Tensor, rows: Decodable) -> tuple[Masks, Memory]:
        """See `Propagation`."""
        masks = self.grounding.decode(rows, None, self.best_of_three)
        return masks, self._remember(image, masks)

    def _remember(self, image: Tensor, masks: Masks) -> Memory:
        present, shares = masks.presence > 0, enlarged(self.grounding, masks.logits).sigmoid()
        pointer = pointer_of(self.grounding, masks.token, present)
        memory = memorise(self.grounding, image, shares, present, pointer)
        return Memory(memory.spatial.to(torch.bfloat16), memory.pointer)


def binarised(logits: Tensor) -> Tensor:
    """1 where a logit is positive, else 0, with the slope of the sigmoid where gradients are wanted.

    A step has no slope of its own, and a soft mask would not be what prediction remembers. This one says how the memory
    would change if a pixel of the outline came in or went out, as the masks of the frames that follow, which enter by
    their sigmoid, do.

    Source: the straight-through estimator (Bengio et al., arXiv 1308.3432).
    """
    step = (logits > 0).to(logits.dtype)
    if not logits.requires_grad:
        return step
    soft = logits.sigmoid()
    return step + (soft - soft.detach())
