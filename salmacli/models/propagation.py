"""Masks carried from frame to frame: what is remembered of a frame that has a mask, and how a later one is decoded.

There are two ways: SAM 2's own, and that of the released Sa2VA.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import NO_OBJ_SCORE
from torch import Tensor

from salmacli.models.grounding import Decodable, FrameFeatures, Grounding, Masks
from salmacli.models.memory import Memory, memorise, pointer_of, without_absent

# SAM 2 treats a given mask as if it had predicted it with these logits.
_GIVEN = 10.0


class Propagation(ABC):
    """One way to carry masks.

    Args:
        grounding: SAM 2.
    """

    def __init__(self, grounding: Grounding) -> None:
        self.grounding = grounding

    def fine_levels(self, frame: FrameFeatures) -> tuple[Tensor, Tensor]:
        """What the decoder of this way reads beside the coloured frame; made once per frame, for all objects."""
        return self.grounding.fine_levels(frame, self.grounding.propagator)

    @abstractmethod
    def remember(self, frame: FrameFeatures, masks: Masks) -> Memory:
        """The memory of a frame that was decoded with language.

        Args:
            frame: the one frame.
            masks: of O objects.
        """

    @abstractmethod
    def follow(self, frame: FrameFeatures, rows: Decodable) -> tuple[Tensor, Memory]:
        """Decode a frame that was recalled.

        Args:
            frame: the one frame.
            rows: the same as memory colours it, O rows.

        Returns:
            (O, S/4, S/4) float32 mask logits, and what is remembered.
        """


class AsSam2(Propagation):
    """SAM 2's own way.

    A mask that is given enters the memory binarised; so that what follows is what SAM 2 was trained on, its original
    decoder propagates where a checkpoint carries it.
    """

    def remember(self, frame: FrameFeatures, masks: Masks) -> Memory:
        """See `Propagation`."""
        grounding = self.grounding
        side = (grounding.image_size,) * 2
        given = F.interpolate(masks.logits.float().unsqueeze(1), side, mode="bilinear", align_corners=False) > 0
        hint = grounding.mask_downsample(given.to(grounding.no_mem_embed.dtype))
        rows = Decodable.of(frame.stride16.expand(len(given), -1, -1, -1), self.fine_levels(frame))
        said = grounding.decode(rows, None, False, decoder=grounding.propagator, mask=hint)
        pointer = pointer_of(grounding, said.token, said.presence > 0)
        present = given.flatten(1).any(dim=1, keepdim=True)
        pointer = without_absent(grounding, pointer, present)
        logits = torch.where(given[:, 0], _GIVEN, -_GIVEN)
        return memorise(grounding, frame, logits, present, pointer)

    def follow(self, frame: FrameFeatures, rows: Decodable) -> tuple[Tensor, Memory]:
        """See `Propagation`."""
        grounding = self.grounding
        best_of_three = bool(grounding._use_multimask(False, None))
        masks = grounding.decode(rows, None, best_of_three, decoder=grounding.propagator)
        present, logits = masks.presence > 0, masks.logits.float()
        if grounding.pred_obj_scores:
            logits = torch.where(present.unsqueeze(-1), logits, NO_OBJ_SCORE)
        pointer = pointer_of(grounding, masks.token, present)
        return logits, memorise(grounding, frame, logits, present, pointer)


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

    def fine_levels(self, frame: FrameFeatures) -> tuple[Tensor, Tensor]:
        """See `Propagation`."""
        return self.grounding.fine_levels(frame, self.grounding.sam_mask_decoder)

    def remember(self, frame: FrameFeatures, masks: Masks) -> Memory:
        """See `Propagation`."""
        present = masks.presence > 0
        pointer = pointer_of(self.grounding, masks.token, present)
        memory = memorise(self.grounding, frame, masks.logits, present, pointer)
        return Memory(memory.spatial.to(torch.bfloat16), memory.pointer)

    def follow(self, frame: FrameFeatures, rows: Decodable) -> tuple[Tensor, Memory]:
        """See `Propagation`."""
        masks = self.grounding.decode(rows, None, self.best_of_three)
        return masks.logits.float(), self.remember(frame, masks)
