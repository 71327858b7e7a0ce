"""SAM 2's memory as the released Sa2VA uses it.

It differs from the `sam2` package's own tracking: mask logits are never replaced where the object seems absent,
the logits themselves (not a binarised mask) of the language-prompted frames enter the memory, memories are rounded to
bfloat16, and every prompted frame stays in memory. Facts from bytedance/Sa2VA, checked on its outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from salmacli.models.grounding import Decodable, FrameFeatures, Grounding, Masks


def propagate_as_sa2va(
    grounding: Grounding, features: FrameFeatures, given: list[Masks], best_of_three: bool = True
) -> Tensor:
    """Carry the masks of a video's first frames to all that follow.

    Args:
        grounding: SAM 2.
        features: of all T frames of one video.
        given: masks of the first frames, O rows each; they come back unchanged.
        best_of_three: as in `Grounding.decode`, for the frames that follow.

    Returns:
        (T, O, S/4, S/4) float32 mask logits.
    """
    bank: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    logits = []
    for frame in range(len(features)):
        one = features.at(torch.full((1,), frame, device=features.stride16.device))
        rows = _sequence(one.stride16.expand(len(given[0].logits), -1, -1, -1))
        prompted = frame < len(given)
        masks = given[frame] if prompted else None
        if masks is None:
            decodable = _recall(grounding, one, rows, frame, bank, len(features))
            masks = grounding.decode(decodable, None, best_of_three)
        logits.append(masks.logits.float())
        kind = "cond_frame_outputs" if prompted else "non_cond_frame_outputs"
        bank[kind][frame] = _memory(grounding, one, rows, masks, prompted)
        # Nothing reads further back than the object pointers do.
        bank["non_cond_frame_outputs"].pop(frame - grounding.max_obj_ptrs_in_encoder, None)
    return torch.stack(logits)


def _recall(
    grounding: Grounding, one: FrameFeatures, rows: Tensor, frame: int, bank: dict[str, Any], total: int
) -> Decodable:
    """One frame as memory colours it for each object: O rows; (h·w, O, C) features come in, repeated for each."""
    objects = rows.shape[1]
    image = grounding._prepare_memory_conditioned_features(
        frame_idx=frame,
        is_init_cond_frame=False,
        current_vision_feats=[rows],
        current_vision_pos_embeds=[_sequence(one.position.expand(objects, -1, -1, -1))],
        feat_sizes=[tuple(one.stride16.shape[-2:])],
        output_dict=bank,
        num_frames=total,
    )
    stride4, stride8 = (level.expand(objects, -1, -1, -1) for level in grounding.fine_levels(one))
    return Decodable(image, (stride4, stride8))


def _memory(grounding: Grounding, one: FrameFeatures, rows: Tensor, masks: Masks, prompted: bool) -> dict[str, Any]:
    """What SAM 2 keeps of a frame: spatial memory, its position encoding and the object pointer."""
    side = (grounding.image_size, grounding.image_size)
    memory, position = grounding._encode_new_memory(
        current_vision_feats=[rows],
        feat_sizes=[tuple(one.stride16.shape[-2:])],
        pred_masks_high_res=F.interpolate(
            masks.logits.float().unsqueeze(1), side, mode="bilinear", align_corners=False
        ),
        object_score_logits=masks.presence,
        is_mask_from_pts=prompted,
    )
    pointer = grounding.obj_ptr_proj(masks.token)
    if grounding.pred_obj_scores:
        present = (masks.presence > 0).to(pointer.dtype)
        pointer = (present * pointer if grounding.fixed_no_obj_ptr else pointer) + (1 - present) * grounding.no_obj_ptr
    return {"maskmem_features": memory.to(torch.bfloat16), "maskmem_pos_enc": position, "obj_ptr": pointer}


def _sequence(level: Tensor) -> Tensor:
    """(O, C, h, w) → (h·w, O, C), SAM 2's own order."""
    return level.flatten(2).permute(2, 0, 1)
