"""Qwen2.5-VL and Qwen3-VL: every frame is a picture of its own, with positions in three dimensions (M-RoPE).

Positions are ours, because transformers' own (`get_rope_index`) know neither branches nor a prefix that is shared; the
tests hold them against transformers' full forward pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from salmacli.data.conversation import QWEN_VL
from salmacli.models.mllm.base import Mllm

# Qwen-VL reads any size; ours is InternVL's, so that models are compared on the same pixels.
FRAME_SIDE = 448


class QwenVl(Mllm):
    """Qwen2.5-VL: a tower with window attention."""

    config_class, model_class = Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    chat = QWEN_VL
    # Source: the preprocessor_config.json beside the released weights (CLIP's values).
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def _native(self, given: dict[str, Any], ids: dict[str, int], tokens: int) -> dict[str, Any]:
        native = super()._native(given, ids, tokens)
        start, end = ids[self.chat.image_start], ids[self.chat.image_end]
        return {**native, "vision_start_token_id": start, "vision_end_token_id": end}

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of the frames it reads: the largest multiple of a language position's pixels up to 448."""
        vision = self.model.config.vision_config
        side = FRAME_SIDE // (vision.patch_size * vision.spatial_merge_size) * vision.patch_size
        return side * vision.spatial_merge_size, side * vision.spatial_merge_size

    @property
    def tokens_per_frame(self) -> int:
        """Language positions that one frame takes."""
        return self._side**2

    @property
    def _side(self) -> int:
        """Rows, and columns, of one frame's language positions."""
        vision = self.model.config.vision_config
        return int(self.frame_size[0] // vision.patch_size // vision.spatial_merge_size)

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Normalised frames (F, 3, h, w) → (F, tokens, D) embeddings for the LLM."""
        return self._towered(pixels).pooler_output.unflatten(0, (len(pixels), -1))

    def _towered(self, pixels: Tensor) -> Any:
        """Outputs of the vision tower, which reads a list of patches and the grids they come from."""
        rows = self._side * self.model.config.vision_config.spatial_merge_size
        grid = torch.tensor([[1, rows, rows]], device=pixels.device).expand(len(pixels), -1)
        tower = self.model.model.visual
        return tower(self._patches(pixels).to(tower.dtype), grid_thw=grid, return_dict=True)

    def _patches(self, pixels: Tensor) -> Tensor:
        """(F, 3, h, w) → (F · patches, 3 · t · p · p) in the order of the processor.

        Patches that become one language position follow each other; a picture is t times the same frame.
        """
        vision = self.model.config.vision_config
        merge, patch, times = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
        cells = pixels.unflatten(3, (-1, merge, patch)).unflatten(2, (-1, merge, patch))
        cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (F, rows, columns, merge, merge, 3, p, p)
        return cells.unsqueeze(6).expand(*cells.shape[:6], times, -1, -1).flatten(5).flatten(0, 4)

    def parts(self) -> dict[str, nn.Module]:
        """The modules by what they do; the projector is inside the tower."""
        return {
            "vision tower": self.model.model.visual,
            "vision-language projector": self.model.model.visual.merger,
            "language model": self.model.model.language_model,
            "language head": self.model.lm_head,
        }

    def _places(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(3, B, L) time, row and column.

        A frame starts where the text before it ends and takes as many positions as it has rows; text goes on after
        that, equal in all three. So every token stands earlier than it is counted, by what whole frames have saved.
        A region that is pointed at in the text repeats some of a frame's looks, and is text to them.
        """
        config, tokens = self.model.config, self.tokens_per_frame
        inside_frame = (ids == config.vision_start_token_id).cumsum(1) > (ids == config.vision_end_token_id).cumsum(1)
        image = (ids == self.image_id) & inside_frame
        counted = image.cumsum(1) - image.long()  # placeholders before each token
        inside = torch.where(image, counted % tokens, 0)
        start = positions - inside - counted // tokens * (tokens - self._side)
        return torch.stack([start, start + inside // self._side, start + inside % self._side])


class Qwen3Vl(QwenVl):
    """Qwen3-VL: features of several depths of the tower enter the first layers of the LLM (deepstack)."""

    config_class, model_class = Qwen3VLConfig, Qwen3VLForConditionalGeneration
    chat = replace(QWEN_VL, system=None)  # its published template has no default system turn
    # Source: the preprocessor_config.json beside the released weights.
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Normalised frames (F, 3, h, w) → (F, tokens, (1 + levels) · D): the embeddings, and what layers add."""
        out = self._towered(pixels)
        return torch.cat([out.pooler_output, *out.deepstack_features], dim=-1).unflatten(0, (len(pixels), -1))

    def parts(self) -> dict[str, nn.Module]:
        """The modules by what they do; the projectors are inside the tower."""
        tower = self.model.model.visual
        projectors = nn.ModuleList([tower.merger, *tower.deepstack_merger_list])
        return {**super().parts(), "vision-language projector": projectors}

    def _read(self, ids: Tensor, looks: Tensor | None = None) -> dict[str, Any]:
        if looks is None:
            return super()._read(ids)
        embeddings, *deep = looks.split(self.width, dim=-1)
        return {
            **super()._read(ids, embeddings),
            "visual_pos_masks": ids == self.image_id,
            "deepstack_visual_embeds": deep,
        }
