"""SAM 2's memory as the released Sa2VA uses it.

It differs from the `sam2` package's own tracking: mask logits are never replaced where the object seems absent,
the logits themselves (not a binarised mask) of the language-prompted frames enter the memory, memories are rounded to
bfloat16, and every prompted frame stays in memory. Facts from bytedance/Sa2VA, checked on its outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from salmacli.models.grounding import Decodable, FrameFeatures, Grounding, Masks


def propagate_as_sa2va(grounding: Grounding, features: FrameFeatures, given: list[Masks]) -> Tensor:
    """Carry the masks of a video's first frames to all that follow.

    Args:
        grounding: SAM 2.
        features: of all T frames of one video.
        given: masks of the first frames, O rows each; they come back unchanged.

    Returns:
        (T, O, S/4, S/4) float32 mask logits.
    """
    bank: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    logits = []
    for frame in range(len(features)):
        number = torch.full((len(given[0].logits),), frame, device=features.stride16.device)
        rows = features.at(number)
        prompted = frame < len(given)
        masks = given[frame] if prompted else _recalled(grounding, rows, frame, bank, len(features))
        logits.append(masks.logits.float())
        kind = "cond_frame_outputs" if prompted else "non_cond_frame_outputs"
        bank[kind][frame] = _memory(grounding, rows, masks, prompted)
        # Nothing reads further back than the object pointers do.
        bank["non_cond_frame_outputs"].pop(frame - grounding.max_obj_ptrs_in_encoder, None)
    return torch.stack(logits)


def _recalled(grounding: Grounding, rows: FrameFeatures, frame: int, bank: dict[str, Any], total: int) -> Masks:
    """Masks of one frame from memory alone: O rows, the frame's features repeated."""
    image = grounding._prepare_memory_conditioned_features(
        frame_idx=frame,
        is_init_cond_frame=False,
        current_vision_feats=[_sequence(rows.stride16)],
        current_vision_pos_embeds=[_sequence(rows.position.expand(len(rows), -1, -1, -1))],
        feat_sizes=[tuple(rows.stride16.shape[-2:])],
        output_dict=bank,
        num_frames=total,
    )
    one = replace(rows, stride4=rows.stride4[:1], stride8=rows.stride8[:1])
    fine = (level.expand(len(rows), -1, -1, -1) for level in grounding.fine_levels(one))
    return grounding.decode(Decodable(image, (next(fine), next(fine))), None, best_of_three=True)


def _memory(grounding: Grounding, rows: FrameFeatures, masks: Masks, prompted: bool) -> dict[str, Any]:
    """What SAM 2 keeps of a frame: spatial memory, its position encoding and the object pointer."""
    side = (grounding.image_size, grounding.image_size)
    memory, position = grounding._encode_new_memory(
        current_vision_feats=[_sequence(rows.stride16)],
        feat_sizes=[tuple(rows.stride16.shape[-2:])],
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
