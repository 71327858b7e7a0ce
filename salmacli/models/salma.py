"""SALMA: the multimodal LLM's [SEG] becomes SAM 2's prompt, with mask-biased attention in between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from salmacli.config.schema import ModelConfig
from salmacli.data.collate import Batch
from salmacli.models.cma import CrossModalAttention2D
from salmacli.models.grounding import Decodable, Grounding, Masks, build_grounding
from salmacli.models.mllm import build_mllm, chat_of
from salmacli.models.tokenizer import build_tokenizer
from salmacli.models.unrolled import Unrolling, unrolled


@dataclass(frozen=True)
class Language:
    """What is known in words about O objects, in SAM 2's width.

    Attributes:
        seg: (O, C) state at `[SEG]`.
        words: (O, N, C) states of the expression's tokens.
        valid: (O, N) False on padding.
    """

    seg: Tensor
    words: Tensor
    valid: Tensor

    def at(self, objects: Tensor | slice) -> Language:
        """Chosen objects, in that order and as often as named: (P,) indices or a slice."""
        return Language(self.seg[objects], self.words[objects], self.valid[objects])

    def where(self, chosen: Tensor, other: Language) -> Language:
        """These objects where `chosen` (O,) is True, the other's of the same words elsewhere."""
        return replace(self, seg=torch.where(chosen[:, None], self.seg, other.seg))

    def mean_word(self) -> Tensor:
        """(O, C), zeros where there is no word."""
        return (self.words * self.valid.unsqueeze(-1)).sum(1) / self.valid.sum(1, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class Outputs:
    """What a training step computes.

    Attributes:
        masks: P masks.
        prior: (F, S/4, S/4) logits of the visual pre-pass, with gradient; None without CMA.
        said: (2, P, C) what is said of each mask's object: the state at `[SEG]`, and the mean of its words.
        looks: (P, C) mean of the image features under the true mask, before the CMA.
        answer_loss: (B,) sum of the cross-entropies of each sample's answer tokens.
        unrolled: whether masks went through SAM 2's memory, and it says where objects are absent.
    """

    masks: Masks
    prior: Tensor | None
    said: Tensor
    looks: Tensor
    answer_loss: Tensor
    unrolled: bool = False


class Salma(nn.Module):
    """The whole model; `forward` is a training step, the other methods are what prediction shares with it.

    Attributes:
        unroll: how training goes through SAM 2's memory; None where it does not.
    """

    unroll: Unrolling | None = None

    def __init__(self, config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.mllm = build_mllm(config.mllm, tokenizer)
        self.grounding: Grounding = build_grounding(config.sam2)
        width, channels = self.mllm.width, config.sam2.width
        self.text_hidden_fcs = text_projector(width, channels)
        self.cma = CrossModalAttention2D(channels, config.cma) if config.cma.enabled else None

    @classmethod
    def build(cls, config: ModelConfig, expressions: Iterable[str]) -> Salma:
        """A model with fresh weights and a tokenizer learnt from the training expressions."""
        model = cls(config, build_tokenizer(expressions, config.mllm.vocabulary, chat_of(config.mllm)))
        # A word must stand out in its own state among all the frames it can see; 0.02 drowns it.
        nn.init.normal_(model.mllm.model.get_input_embeddings().weight)
        model.grounding.match_queries_and_keys()
        model.grounding.start_memory()
        return model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.grounding.no_mem_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.grounding.no_mem_embed.dtype

    @property
    def tiles(self) -> int:
        """At most so many tiles of a picture are shown to the LLM."""
        return self.config.tiles if self.mllm.tiles else 1

    def language(self, seg: Tensor, words: Tensor, valid: Tensor) -> Language:
        """Project hidden states of the rows that are used: (O, D), (O, N, D), (O, N)."""
        return Language(self.text_hidden_fcs(seg), self.text_hidden_fcs(words), valid)

    def prior(self, frames: Decodable) -> Tensor:
        """Visual pre-pass without language: (F, S/4, S/4) mask logits."""
        return self.grounding.decode(frames, None, self.config.mask_token == "best-of-three").logits

    def attend(self, rows: Decodable, language: Language, prior: Tensor | None) -> Decodable:
        """Let image features attend to the words, where there is a CMA.

        Args:
            rows: P frames, one per mask.
            language: of P objects.
            prior: (P, S/4, S/4) logits of where objects are; without them nothing attends.
        """
        if self.cma is None or prior is None:
            return rows
        return cast(Decodable, self.cma(rows, language.words, language.valid, language.seg, prior))

    def decode(self, rows: Decodable, language: Language, prior: Tensor | None) -> Masks:
        """Masks of P pairs of frame and object; arguments as of `attend`. Training and prediction come through here."""
        rows = self.attend(rows, language, prior)
        return self.grounding.decode(rows, language.seg, self.config.mask_token == "best-of-three")

    def forward(self, batch: Batch) -> Outputs:
        """One training step's computation."""
        hidden = self._read(batch)
        rows = batch.seg_rows.unsqueeze(1)
        language = self.language(
            hidden[batch.seg_rows, batch.seg_columns], hidden[rows, batch.words.clamp(min=0)], batch.words >= 0
        )
        masks, prior, looks = self._look(batch, language)
        return Outputs(
            masks=masks,
            prior=prior,
            said=torch.stack([language.seg, language.mean_word()])[:, batch.object_of],
            looks=looks,
            answer_loss=self._answer_loss(hidden, batch),
            unrolled=self.unroll is not None and self.config.sam2.object_scores,
        )

    def _read(self, batch: Batch) -> Tensor:
        """Last hidden states (B, L, D) of the batch's conversations."""
        looks = None
        if len(batch.mllm_pixels):
            looks = self.mllm.encode_frames(batch.mllm_pixels).flatten(0, 1)[batch.seen]
        return self.mllm(batch.ids, looks, batch.attention, batch.positions)

    def _answer_loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(B,); the token at a position is predicted from the one before it, and only answers have labels."""
        rows, columns = (batch.labels[:, 1:] >= 0).nonzero(as_tuple=True)
        losses = self.mllm.cross_entropy(hidden[rows, columns], batch.labels[rows, columns + 1])
        return losses.new_zeros(len(hidden)).index_add(0, rows, losses)

    def _look(self, batch: Batch, language: Language) -> tuple[Masks, Tensor | None, Tensor]:
        """Masks (P), prior (F, S/4, S/4) and what the features look like under the true masks (P, C)."""
        if not len(batch.object_of):  # nothing to segment: nothing is encoded
            side, width = self.config.sam2.image_size // 4, self.config.sam2.width
            shapes = ((0, side, side), (0,), (0, width), (0, 1))
            logits, iou, token, presence = (torch.zeros(s, device=self.device, dtype=self.dtype) for s in shapes)
            return Masks(logits, iou, token, presence), logits if self.cma is not None else None, token
        features = self.grounding.encode(batch.sam_pixels)
        sights = self.grounding.decodable(features)
        prior = self.prior(sights) if self.cma is not None else None

        def spoken(rows: Tensor | slice) -> Masks:
            frames, objects = batch.frame_of[rows], batch.object_of[rows]
            return self.decode(sights.at(frames), language.at(objects), None if prior is None else prior[frames])

        if self.unroll is None:
            masks = spoken(slice(None))
        else:
            masks = unrolled(self.grounding, features, batch, spoken, self.unroll)
        return masks, prior, _under(features.stride16[batch.frame_of], batch.targets)


def text_projector(width: int, channels: int) -> nn.Sequential:
    """Fresh `text_hidden_fcs`: hidden states (…, D) → prompts (…, C)."""
    last = nn.Linear(width, channels)
    # SAM 2's own prompt tokens have unit variance; a fainter [SEG] among them would hardly be heard, nor learn.
    nn.init.kaiming_normal_(last.weight, nonlinearity="relu")
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)


def _under(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of (P, C, h, w) features under (P, S, S) masks: (P, C), zeros under empty ones."""
    share = F.interpolate(masks.unsqueeze(1).to(features.dtype), features.shape[-2:], mode="area")
    return (features * share).sum((2, 3)) / share.sum((2, 3)).clamp(min=1e-6)
