"""SAM 2: frames → features, features and a prompt → masks, masks → memory → masks of other frames.

Everything is the `sam2` package's own; this module builds it from our configuration and gives its pieces shapes and
names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import MLP
from torch import Tensor

from salmacli.config.schema import Sam2Config
from salmacli.models.sam2_package import package_config


@dataclass(frozen=True)
class FrameFeatures:
    """FPN features of F frames, before the mask decoder's own `conv_s0/s1` (there may be two decoders).

    Attributes:
        stride4, stride8, stride16: (F, C, S/4, S/4), (F, C, S/8, S/8), (F, C, S/16, S/16).
        position: (1, C, S/16, S/16) encoding that the memory attention adds.
    """

    stride4: Tensor
    stride8: Tensor
    stride16: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.stride16)

    def at(self, frames: Tensor) -> FrameFeatures:
        """The features of chosen frames, in that order and as often as named: (P,) indices."""
        return replace(self, stride4=self.stride4[frames], stride8=self.stride8[frames], stride16=self.stride16[frames])


@dataclass(frozen=True)
class Decodable:
    """What the mask decoder reads of F frames without memory; made once per frame, whatever the number of objects.

    Attributes:
        image: (F, C, S/16, S/16) features to decode.
        fine: (F, C/8, S/4, S/4) and (F, C/4, S/8, S/8), the finer levels after the decoder's own `conv_s0/s1`.
    """

    image: Tensor
    fine: tuple[Tensor, Tensor]

    def __len__(self) -> int:
        return len(self.image)

    def at(self, frames: Tensor) -> Decodable:
        """Chosen frames, in that order and as often as named: (P,) indices."""
        return Decodable(self.image[frames], (self.fine[0][frames], self.fine[1][frames]))


@dataclass(frozen=True)
class Masks:
    """What the mask decoder says.

    Attributes:
        logits: (P, S/4, S/4) mask logits, never masked by the object score.
        iou: (P,) the decoder's own estimate of each mask's IoU.
        token: (P, C) the decoder's output token of each mask, of which SAM 2 makes its object pointer.
        presence: (P, 1) logits of the object being in the frame.
    """

    logits: Tensor
    iou: Tensor
    token: Tensor
    presence: Tensor

    def parts(self) -> tuple[Tensor, ...]:
        """The four tensors in their order."""
        return self.logits, self.iou, self.token, self.presence


class Grounding(SAM2Base):
    """SAM 2 with a language prompt."""

    def encode(self, images: Tensor) -> FrameFeatures:
        """Features of normalised frames (F, 3, S, S)."""
        out = self.image_encoder(images)
        stride4, stride8, stride16 = out["backbone_fpn"]
        return FrameFeatures(stride4, stride8, stride16, out["vision_pos_enc"][-1][:1])

    @torch.no_grad()
    def match_queries_and_keys(self) -> None:
        """Start the fresh mask decoder with equal query and key projections between prompts and image.

        What the text-mask contrast makes alike then attends to each other from the start; unequal random projections
        have to be learnt first, which takes longer than all the rest. Pretrained decoders are not touched.
        """
        transformer = self.sam_mask_decoder.transformer
        attentions = [transformer.final_attn_token_to_image]
        for layer in transformer.layers:
            attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
        for attention in attentions:
            attention.k_proj.weight.copy_(attention.q_proj.weight)

    def decodable(self, features: FrameFeatures) -> Decodable:
        """Prepare frames that have no memory yet for the mask decoder."""
        image = features.stride16 + self.no_mem_embed.transpose(1, 2).unsqueeze(-1)
        return Decodable(image, self.fine_levels(features))

    def fine_levels(self, features: FrameFeatures) -> tuple[Tensor, Tensor]:
        """The finer levels after the mask decoder's own `conv_s0/s1`: (F, C/8, S/4, S/4) and (F, C/4, S/8, S/8)."""
        decoder = self.sam_mask_decoder
        return decoder.conv_s0(features.stride4), decoder.conv_s1(features.stride8)

    def decode(self, rows: Decodable, language: Tensor | None, best_of_three: bool) -> Masks:
        """Run the prompt encoder with its padding point, and the mask decoder.

        Args:
            rows: P frames, one per mask.
            language: (P, C) prompt that follows the padding point, or None (the visual pre-pass).
            best_of_three: take the one of three masks with the best predicted IoU instead of the single-mask token's.
        """
        count, device = len(rows), rows.image.device
        points = torch.zeros(count, 1, 2, device=device)
        labels = -torch.ones(count, 1, dtype=torch.int32, device=device)
        sparse, dense = self.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
        if language is not None:
            sparse = torch.cat([sparse.to(language.dtype), language.unsqueeze(1)], dim=1)
        logits, iou, tokens, presence = self.sam_mask_decoder(
            image_embeddings=rows.image,
            image_pe=self.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=best_of_three,
            repeat_image=False,
            high_res_features=list(rows.fine),
        )
        best = iou.argmax(dim=1) if best_of_three else torch.zeros(count, dtype=torch.long, device=device)
        row = torch.arange(count, device=device)
        return Masks(logits[row, best], iou[row, best], tokens[row, best], presence)

    def propagate(self, features: FrameFeatures, given: dict[int, Tensor]) -> Tensor:
        """Carry masks of some frames through SAM 2's memory to all others, forwards and then backwards.

        Args:
            features: of all T frames of one video.
            given: frame → (O, S/4, S/4) mask logits; their binarised form enters the memory.

        Returns:
            (T, O, S/4, S/4) mask logits; those of given frames as they came. A frame between two given ones takes the
            forward result, frames before the first given one the backward result.
        """
        total, objects = len(features), len(next(iter(given.values())))
        result = features.stride4.new_zeros(total, objects, *next(iter(given.values())).shape[-2:], dtype=torch.float32)
        conditioning = {}
        for frame, logits in sorted(given.items()):
            result[frame] = logits.float()
            size = (self.image_size, self.image_size)
            binary = F.interpolate(logits.float().unsqueeze(1), size, mode="bilinear", align_corners=False) > 0
            conditioning[frame] = self._track(features, frame, objects, total, binary.to(features.stride16.dtype))
        first = min(given)
        for reverse in (False, True):
            bank: dict[str, dict[int, Any]] = {
                "cond_frame_outputs": dict(conditioning),
                "non_cond_frame_outputs": {},
            }
            order = range(first - 1, -1, -1) if reverse else range(first + 1, total)
            for frame in order:
                if frame in given:
                    continue
                out = self._track(features, frame, objects, total, None, bank, reverse)
                result[frame] = out["pred_masks"][:, 0].float()
                bank["non_cond_frame_outputs"][frame] = out
                # Nothing reads further back than the pointers do; this keeps memory flat in the video's length.
                bank["non_cond_frame_outputs"].pop(frame + (1 if reverse else -1) * self.max_obj_ptrs_in_encoder, None)
        return result

    def _track(
        self,
        features: FrameFeatures,
        frame: int,
        objects: int,
        total: int,
        mask: Tensor | None,
        bank: dict[str, dict[int, Any]] | None = None,
        reverse: bool = False,
    ) -> dict[str, Any]:
        """SAM 2's own step for one frame and all objects at once."""
        one = features.at(torch.full((1,), frame, device=features.stride16.device))
        levels = [*self.fine_levels(one), one.stride16]
        rows = [level.expand(objects, -1, -1, -1).flatten(2).permute(2, 0, 1) for level in levels]
        position = one.position.expand(objects, -1, -1, -1).flatten(2).permute(2, 0, 1)
        out: dict[str, Any] = self.track_step(
            frame_idx=frame,
            is_init_cond_frame=mask is not None,
            current_vision_feats=rows,
            current_vision_pos_embeds=[position] * len(rows),
            feat_sizes=[tuple(level.shape[-2:]) for level in levels],
            point_inputs=None,
            mask_inputs=mask,
            output_dict=bank,
            num_frames=total,
            track_in_reverse=reverse,
        )
        return out


_PACKAGE_FEEDFORWARD = 2048


def build_grounding(config: Sam2Config) -> Grounding:
    """SAM 2 with fresh weights, from our configuration, in the way of the package's own YAML files."""
    package = {**package_config(config), "_target_": f"{Grounding.__module__}.{Grounding.__qualname__}"}
    model: Grounding = instantiate(package, _recursive_=True)
    if config.decoder_feedforward != _PACKAGE_FEEDFORWARD:
        # The package fixes this width in its code, at a size that would be a third of a tiny model.
        for layer in model.sam_mask_decoder.transformer.layers:
            layer.mlp = MLP(config.width, config.decoder_feedforward, config.width, num_layers=2)
    return model
