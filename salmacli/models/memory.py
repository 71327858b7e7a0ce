"""SAM 2's memory: what is kept of a frame, and how a later frame looks in its light.

The `sam2` package does this inside `SAM2Base`, for one frame and all objects at once. Here the same arithmetic stands
apart, so that objects go through it in batches of any size, in any floating-point type, and so that what all objects
share (the frame's own features, all position encodings) is computed once. Tests hold it against the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor

from salmacli.models.grounding import Grounding


@dataclass(frozen=True)
class Memory:
    """What is kept of one frame.

    Attributes:
        spatial: (O, M, h, w) the frame and each object's mask, at stride 16.
        pointer: (O, C) object pointers.
    """

    spatial: Tensor
    pointer: Tensor

    @staticmethod
    def cat(parts: Sequence[Memory]) -> Memory:
        """The memory of all objects, from that of some each."""
        return Memory(torch.cat([part.spatial for part in parts]), torch.cat([part.pointer for part in parts]))


@dataclass(frozen=True)
class Recalled:
    """What a frame looks back to.

    Attributes:
        tokens: (O, L, M) memories, the object pointers last.
        places: (1, L, M) where and when each is from.
        pointers: how many of the tokens are those of pointers.
    """

    tokens: Tensor
    places: Tensor
    pointers: int


def enlarged(grounding: Grounding, logits: Tensor) -> Tensor:
    """(O, s, s) mask logits of any size as (O, S, S) float32, which the memory is made of."""
    side, mask = (grounding.image_size,) * 2, logits.float().unsqueeze(1)
    return (
        F.interpolate(mask, side, mode="bilinear", align_corners=False)[:, 0] if mask.shape[-2:] != side else mask[:, 0]
    )


def memorise(grounding: Grounding, image: Tensor, shares: Tensor, present: Tensor, pointer: Tensor) -> Memory:
    """Make the memory of a frame.

    Args:
        grounding: SAM 2.
        image: (1 or O, C, h, w) stride-16 features of the frame, which all objects may share.
        shares: (O, S, S) float32, how much of each pixel is the object's, 0 to 1.
        present: (O, 1) bool, whether the object is in the frame.
        pointer: (O, C) see `pointer_of`.
    """
    kind = grounding.no_mem_embed.dtype
    mask = shares.unsqueeze(1) * grounding.sigmoid_scale_for_mem_enc + grounding.sigmoid_bias_for_mem_enc
    # The package hands in the frame once per object; its projection is the same for all.
    out = grounding.memory_encoder(image, mask.to(kind), skip_mask_sigmoid=True)
    spatial = out["vision_features"]
    if grounding.no_obj_embed_spatial is not None:
        spatial = spatial + (~present)[..., None, None].to(kind) * grounding.no_obj_embed_spatial[..., None, None]
    return Memory(spatial, pointer)


def pointer_of(grounding: Grounding, token: Tensor, present: Tensor) -> Tensor:
    """(O, C) object pointers of the decoder's output tokens (O, C); (O, 1) bool says whose object is in the frame."""
    return without_absent(grounding, grounding.obj_ptr_proj(token), present)


def without_absent(grounding: Grounding, pointer: Tensor, present: Tensor) -> Tensor:
    """Put SAM 2's own pointer of absence where an object is not in the frame."""
    if not grounding.pred_obj_scores:
        return pointer
    there = present.to(pointer.dtype)
    return (there * pointer if grounding.fixed_no_obj_ptr else pointer) + (1 - there) * grounding.no_obj_ptr


def coloured(grounding: Grounding, image: Tensor, position: Tensor, recalled: Recalled) -> Tensor:
    """A frame as memory colours it for O objects: (O, C, h, w).

    Args:
        grounding: SAM 2.
        image: (1 or O, C, h, w) stride-16 features of the frame, which all objects may share.
        position: (1, C, h, w) encoding of places.
        recalled: what the frame looks back to.
    """
    count = len(recalled.tokens)
    current, place = (level.flatten(2).permute(2, 0, 1) for level in (image, position))
    out: Tensor = grounding.memory_attention(
        curr=current.expand(-1, count, -1),
        curr_pos=place.to(current.dtype).expand(-1, count, -1),
        memory=recalled.tokens.transpose(0, 1),
        memory_pos=recalled.places.expand(count, -1, -1).transpose(0, 1),
        num_obj_ptr_tokens=recalled.pointers,
    )
    return out.permute(1, 2, 0).unflatten(2, tuple(image.shape[-2:]))


class MemoryBank:
    """Memories of conditioning frames, and of the last few frames.

    Args:
        grounding: SAM 2.
        given: memories of the conditioning frames.
        total: frames of the video.
        reverse: time runs backwards.
        recent: how many of the last frames are remembered; SAM 2's own number (6) if not given.
        conditioning: to how many conditioning frames, the nearest in time, a frame looks; to all if not given.
    """

    def __init__(
        self,
        grounding: Grounding,
        given: Mapping[int, Memory],
        total: int,
        *,
        reverse: bool = False,
        recent: int | None = None,
        conditioning: int | None = None,
    ) -> None:
        self.grounding = grounding
        self.sign = -1 if reverse else 1
        self.recent = min(recent or grounding.num_maskmem - 1, grounding.num_maskmem - 1)
        self.conditioning = conditioning
        self.pointers = min(total, grounding.max_obj_ptrs_in_encoder)
        self.given = given
        self.followed: dict[int, Memory] = {}
        self._parts = grounding.hidden_dim // grounding.mem_dim  # tokens that a pointer becomes
        self._places: Tensor | None = None
        self._placed: tuple[int, Tensor] | None = None

    def follow(self, frame: int, memory: Memory) -> None:
        """Keep a frame for as long as some later one looks back to it."""
        self.followed[frame] = memory
        # Nothing looks further back than the pointers do; this keeps memory flat in the video's length.
        self.followed.pop(frame - self.sign * self.pointers, None)
        old = self.followed.get(frame - self.sign * self.recent)
        if old is not None and self.recent < self.pointers:
            self.followed[frame - self.sign * self.recent] = Memory(old.spatial.new_empty(0), old.pointer)

    def recall(self, number: int, objects: slice = slice(None)) -> Recalled:
        """What frame `number` looks back to, for the objects in these rows of the memories."""
        near, far = self._conditioning(number)
        spatial = [(memory, self.grounding.num_maskmem - 1) for memory in near.values()]
        for back in range(self.recent, 0, -1):
            before = number - self.sign * back
            memory = self.followed.get(before, far.get(before))
            if memory is not None:
                spatial.append((memory, back - 1))
        tokens = [memory.spatial[objects].flatten(2).transpose(1, 2) for memory, _ in spatial]
        pointers = self._pointers(number, near, far)
        if pointers:
            stacked = torch.stack([pointer[objects] for _, pointer in pointers], dim=1)  # (O', N, C)
            tokens.append(stacked.unflatten(2, (self._parts, -1)).flatten(1, 2))
        if self._placed is None or self._placed[0] != number:  # the same for all objects
            table = self._table(spatial[0][0].spatial)
            places = [table[place] for _, place in spatial]
            times = self._times([time for time, _ in pointers]) if pointers else table[0][:, :0]
            self._placed = number, torch.cat([*places, times.repeat_interleave(self._parts, dim=1)], dim=1)
        dtype, count = self.grounding.no_mem_embed.dtype, len(pointers) * self._parts
        return Recalled(torch.cat([token.to(dtype) for token in tokens], dim=1), self._placed[1], count)

    def _conditioning(self, number: int) -> tuple[Mapping[int, Memory], Mapping[int, Memory]]:
        """The conditioning frames that are looked back to, and the others."""
        if self.conditioning is None or len(self.given) <= self.conditioning:
            return self.given, {}
        nearest = sorted(self.given, key=lambda frame: abs(frame - number))
        near = set(nearest[: self.conditioning])
        return (
            {frame: memory for frame, memory in self.given.items() if frame in near},
            {frame: memory for frame, memory in self.given.items() if frame not in near},
        )

    def _pointers(self, number: int, near: Mapping[int, Memory], far: Mapping[int, Memory]) -> list[tuple[int, Tensor]]:
        """Object pointers (O, C) and how many frames ago they are from."""
        found = []
        for frame, memory in near.items():
            ago = (number - frame) * self.sign
            if ago >= 0 or not self.grounding.only_obj_ptrs_in_the_past_for_eval:
                signed = self.grounding.use_signed_tpos_enc_to_obj_ptrs
                found.append((ago if signed else abs(ago), memory.pointer))
        for ago in range(1, self.pointers):
            before = number - self.sign * ago
            memory_or_none = self.followed.get(before, far.get(before))
            if memory_or_none is not None:
                found.append((ago, memory_or_none.pointer))
        return found

    def _times(self, ago: Sequence[int]) -> Tensor:
        """(1, N, M) encodings of when pointers are from."""
        grounding = self.grounding
        like = grounding.no_mem_embed
        if not grounding.add_tpos_enc_to_obj_ptrs:
            return like.new_zeros(1, len(ago), grounding.mem_dim)
        width = grounding.hidden_dim if grounding.proj_tpos_enc_in_obj_ptrs else grounding.mem_dim
        # Without waiting for the device, which is busy with the frame before.
        share = torch.tensor(ago).to(like.device, non_blocking=True) / (self.pointers - 1)
        projected = grounding.obj_ptr_tpos_proj(get_1d_sine_pe(share, dim=width).to(like.dtype))
        return cast(Tensor, projected).unsqueeze(0)

    def _table(self, like: Tensor) -> Tensor:
        """(7, 1, h·w, M) place encodings of a spatial memory: of one 1, 2, … frames ago, and of a conditioning one."""
        if self._places is None:
            encoder: Any = self.grounding.memory_encoder
            space = encoder.position_encoding(like[:1]).to(like.device, self.grounding.no_mem_embed.dtype)
            space = space.flatten(2).transpose(1, 2)
            self._places = torch.stack([space + time.view(1, 1, -1) for time in self.grounding.maskmem_tpos_enc])
        return self._places
