"""InternVL 2.5, 3 and 3.5 in transformers' native form, whatever their LLM (Qwen2, Qwen3, Llama for InternLM2)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from transformers import InternVLConfig, InternVLForConditionalGeneration

from salmacli.data.collate import MEAN, STD
from salmacli.data.conversation import INTERNVL
from salmacli.models.mllm.base import Mllm


class InternVl(Mllm):
    """A frame is one square of patches; a fourth of them (downsample ratio 0.5) become language positions."""

    config_class, model_class = InternVLConfig, InternVLForConditionalGeneration
    chat, mean, std, tiles = INTERNVL, MEAN, STD, True

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of the frames it reads."""
        height, width = self.model.config.vision_config.image_size
        return int(height), int(width)

    @property
    def tokens_per_frame(self) -> int:
        """Language positions that one frame takes."""
        config = self.model.config
        (height, width), (rows, columns) = self.frame_size, config.vision_config.patch_size
        return int((height // rows) * (width // columns) * config.downsample_ratio**2)

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Normalised frames (F, 3, h, w) → (F, tokens, D) embeddings for the LLM."""
        return cast(Tensor, self.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output)

    def parts(self) -> dict[str, nn.Module]:
        """The modules by what they do."""
        return {
            "vision tower": self.model.model.vision_tower,
            "vision-language projector": self.model.model.multi_modal_projector,
            "language model": self.model.model.language_model,
            "language head": self.model.lm_head,
        }
