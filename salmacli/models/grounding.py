"""SAM 2: frames → features, features and a prompt → masks.

Everything is the `sam2` package's own; this module builds it from our configuration and gives its pieces shapes and
names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from hydra.utils import instantiate
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import MLP
from torch import Tensor

from salmacli.config.schema import Sam2Config
from salmacli.models.sam2_package import package_config

# At this bias the next cell gets about 1 % of the attention that the same one gets; larger ones leave no gradient.
_LOCAL = 5.0
_LOUD = 4.0


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

    def at(self, frames: Tensor | slice) -> FrameFeatures:
        """The features of chosen frames, in that order and as often as named: (P,) indices."""
        return replace(self, stride4=self.stride4[frames], stride8=self.stride8[frames], stride16=self.stride16[frames])

    @staticmethod
    def cat(parts: Sequence[FrameFeatures]) -> FrameFeatures:
        """Frames of several batches in their order."""
        if len(parts) == 1:
            return parts[0]
        levels = ("stride4", "stride8", "stride16")
        return replace(parts[0], **{level: torch.cat([getattr(part, level) for part in parts]) for level in levels})


@dataclass(frozen=True)
class Decodable:
    """What the mask decoder reads of F frames without memory; made once per frame, whatever the number of objects.

    Attributes:
        image: (F, C, S/16, S/16) features to decode.
        fine: (F, C/8, S/4, S/4) and (F, C/4, S/8, S/8), the finer levels after the decoder's own `conv_s0/s1`.
        fuse: what becomes of the decoder's mask features (F, C/8, S/4, S/4) before it makes masks of them; made for
            just these rows.
    """

    image: Tensor
    fine: tuple[Tensor, Tensor]
    fuse: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.image)

    def at(self, frames: Tensor | slice) -> Decodable:
        """Chosen frames, in that order and as often as named: (P,) indices or a slice."""
        assert self.fuse is None, "rows are chosen before they attend"
        return Decodable(self.image[frames], (self.fine[0][frames], self.fine[1][frames]))

    @classmethod
    def of(cls, image: Tensor, fine: tuple[Tensor, Tensor]) -> Decodable:
        """One frame as P rows: (P, C, S/16, S/16) features, and the finer levels of that one frame, not copied."""
        stride4, stride8 = (level.expand(len(image), -1, -1, -1) for level in fine)
        return cls(image, (stride4, stride8))


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

    def at(self, rows: Tensor | slice) -> Masks:
        """Some of the masks, in that order."""
        return Masks(*(part[rows] for part in self.parts()))

    @staticmethod
    def cat(chunks: Sequence[Masks]) -> Masks:
        """The masks of several calls as those of one."""
        return Masks(*(torch.cat(parts) for parts in zip(*(chunk.parts() for chunk in chunks), strict=True)))


class Grounding(SAM2Base):
    """SAM 2 with a language prompt.

    Attributes:
        propagation_decoder: the mask decoder that carries masks through the memory, where it is another one than
            `sam_mask_decoder`; else None.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.propagation_decoder: MaskDecoder | None = None

    @property
    def propagator(self) -> MaskDecoder:
        """The mask decoder that carries masks through the memory."""
        return self.sam_mask_decoder if self.propagation_decoder is None else self.propagation_decoder

    def encode(self, images: Tensor) -> FrameFeatures:
        """Features of normalised frames (F, 3, S, S)."""
        kind = self.no_mem_embed.dtype
        out = self.image_encoder(images.to(kind))
        self._own_positions()
        # The package's FPN adds in float32; its encoding of positions is the same for all frames.
        position = out["vision_pos_enc"][-1][:1].clone()
        stride4, stride8, stride16, position = (level.to(kind) for level in (*out["backbone_fpn"], position))
        return FrameFeatures(stride4, stride8, stride16, position)

    def _own_positions(self) -> None:
        """Let the FPN's cache hold its tables alone: the package keeps views of the first batch's, for ever."""
        tables: dict[Any, Tensor] = self.image_encoder.neck.position_encoding.cache
        for size, table in tables.items():
            if table.untyped_storage().nbytes() > table.numel() * table.element_size():
                tables[size] = table.clone()

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

    @torch.no_grad()
    def start_memory(self) -> None:
        """Start the fresh memory looking where it stands, and loud enough to be heard.

        Equal biases of queries and keys leave it to the rotary encoding of places what attends to what: each place to
        itself and its neighbours. Random projections alone attend to everything alike, and an average over the whole
        frame does not say where an object is. Neither is it heard what a mask changes, 1 % of the image features,
        before these weights have grown. Pretrained memories are not touched.
        """
        for layer in self.memory_attention.layers:
            attention = layer.cross_attn_image
            for projection in (attention.q_proj, attention.k_proj):
                projection.bias.fill_(_LOCAL)
            for projection in (attention.v_proj, attention.out_proj):
                projection.weight.mul_(_LOUD)
        for reader in (self.memory_encoder.mask_downsampler.encoder, self.sam_prompt_encoder.mask_downscaling):
            reader[-1].weight.mul_(_LOUD)

    def decodable(self, features: FrameFeatures) -> Decodable:
        """Prepare frames that have no memory yet for the mask decoder."""
        image = features.stride16 + self.no_mem_embed.transpose(1, 2).unsqueeze(-1)
        return Decodable(image, self.fine_levels(features, self.sam_mask_decoder))

    def fine_levels(self, features: FrameFeatures, decoder: MaskDecoder) -> tuple[Tensor, Tensor]:
        """The finer levels after a decoder's own `conv_s0/s1`: (F, C/8, S/4, S/4) and (F, C/4, S/8, S/8)."""
        return decoder.conv_s0(features.stride4), decoder.conv_s1(features.stride8)

    def decode(
        self,
        rows: Decodable,
        language: Tensor | None,
        best_of_three: bool,
        *,
        decoder: MaskDecoder | None = None,
        mask: Tensor | None = None,
    ) -> Masks:
        """Run a mask decoder on SAM 2's padding point and what follows it.

        Args:
            rows: P frames, one per mask.
            language: (P, C) prompt that follows the padding point, or None (the visual pre-pass).
            best_of_three: take the one of three masks with the best predicted IoU instead of the single-mask token's.
            decoder: the one that is trained with language if not given.
            mask: (P, 1, S/4, S/4) mask prompt.
        """
        count, device, dtype = len(rows), rows.image.device, rows.image.dtype
        prompts = self.sam_prompt_encoder
        # The package's own embedding of a prompt without points: the padding point, and one that it adds itself.
        sparse = prompts.not_a_point_embed.weight.expand(count, 2, -1)
        if language is not None:
            sparse = torch.cat([sparse, language.to(dtype).unsqueeze(1)], dim=1)
        if mask is None:
            dense = prompts.no_mask_embed.weight[..., None, None].expand(count, -1, *rows.image.shape[-2:])
        else:
            dense = prompts.mask_downscaling(mask.to(dtype))
        decoder = decoder or self.sam_mask_decoder
        with _fusing(decoder, rows.fuse):
            logits, iou, tokens, presence = decoder(
                image_embeddings=rows.image,
                image_pe=self._place().to(dtype),
                sparse_prompt_embeddings=sparse.to(dtype),
                dense_prompt_embeddings=dense.to(dtype),
                multimask_output=best_of_three,
                repeat_image=False,
                high_res_features=list(rows.fine),
            )
        best = iou.argmax(dim=1) if best_of_three else torch.zeros(count, dtype=torch.long, device=device)
        row = torch.arange(count, device=device)
        return Masks(logits[row, best], iou[row, best], tokens[row, best], presence)

    def _place(self) -> Tensor:
        """(1, C, S/16, S/16) the prompt encoder's position encoding, made in float32 whatever the weights are."""
        prompts: Any = self.sam_prompt_encoder
        prompts.pe_layer.float()
        return cast(Tensor, prompts.get_dense_pe())


@contextmanager
def _fusing(decoder: MaskDecoder, fuse: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Let mask features go through `fuse` where the decoder has made them, which is inside its one big function."""
    if fuse is None:
        yield
        return
    handle = decoder.output_upscaling[-1].register_forward_hook(lambda module, inputs, features: fuse(features))
    try:
        yield
    finally:
        handle.remove()


_PACKAGE_FEEDFORWARD = 2048


def build_grounding(config: Sam2Config) -> Grounding:
    """SAM 2 with fresh weights, from our configuration, in the way of the package's own YAML files."""
    package = {**package_config(config), "_target_": f"{Grounding.__module__}.{Grounding.__qualname__}"}
    model: Grounding = instantiate(package, _recursive_=True)
    if config.decoder_feedforward != _PACKAGE_FEEDFORWARD:
        # The package fixes this width in its code, at a size that would be a third of a tiny model.
        for layer in model.sam_mask_decoder.transformer.layers:
            layer.mlp = MLP(config.width, config.decoder_feedforward, config.width, num_layers=2)
    if config.two_decoders:
        model.propagation_decoder = deepcopy(model.sam_mask_decoder)
    return model
