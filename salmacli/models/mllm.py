"""The multimodal LLM: frames and a conversation → hidden states, and greedy answers.

transformers' InternVL, used through its own modules. Frames are encoded once per video, and the answers to several
expressions continue one common prefix (`salmacli.data.conversation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from salmacli.config.schema import MllmConfig
from salmacli.data.conversation import IMAGE_CONTEXT, TURN_END
from salmacli.data.templates import SEG


@dataclass(frozen=True)
class Answers:
    """What the LLM says about E expressions of one video.

    Attributes:
        ids: per expression, the tokens of the answer without the end of the turn.
        seg: (E, D) last hidden state at the first `[SEG]`; zeros where there is none.
        found: (E,) whether there is one.
        words: (E, L, D) hidden states of the question's tokens.
    """

    ids: tuple[tuple[int, ...], ...]
    seg: Tensor
    found: Tensor
    words: Tensor


class Mllm(nn.Module):
    """InternVL with its tokenizer's `[SEG]`."""

    def __init__(self, config: MllmConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        native = {**config.native, "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT)}
        native["text_config"] = {**native["text_config"], "vocab_size": len(tokenizer)}
        self.model = InternVLForConditionalGeneration(InternVLConfig(**native))
        self.seg_id: int = tokenizer.convert_tokens_to_ids(SEG)
        self.end_id: int = tokenizer.convert_tokens_to_ids(TURN_END)

    @property
    def width(self) -> int:
        """D, the width of the hidden states."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of the frames it reads."""
        height, width = self.model.config.vision_config.image_size
        return int(height), int(width)

    @property
    def tokens_per_frame(self) -> int:
        """Language positions that one frame takes."""
        config = self.model.config
        (height, width), (rows, columns) = config.vision_config.image_size, config.vision_config.patch_size
        return int((height // rows) * (width // columns) * config.downsample_ratio**2)

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Normalised frames (F, 3, h, w) → (F, tokens, D) embeddings for the LLM."""
        return cast(Tensor, self.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output)

    def forward(self, ids: Tensor, frames: Tensor, attention: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states of packed conversations.

        Args:
            ids: (B, L) tokens, with one placeholder per row of `frames`.
            frames: (F, tokens, D) of all conversations, in order.
            attention: (B, L, L) True where a query (second axis) may see a key (third).
            positions: (B, L) position ids.

        Returns:
            (B, L, D).
        """
        embedded = self._embed(ids, frames)
        mask = torch.zeros(attention.shape, dtype=embedded.dtype, device=embedded.device)
        mask = mask.masked_fill(~attention, torch.finfo(embedded.dtype).min).unsqueeze(1)
        out = self.model.model.language_model(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
        )
        return cast(Tensor, out.last_hidden_state)

    def vocabulary_logits(self, hidden: Tensor) -> Tensor:
        """(…, D) → (…, V)."""
        return cast(Tensor, self.model.lm_head(hidden))

    @torch.no_grad()
    def answer(self, prefix: Tensor, frames: Tensor, questions: list[Tensor], max_new_tokens: int) -> Answers:
        """Answer several questions about one video greedily; the video is read once.

        Args:
            prefix: (P,) ids of the conversation's beginning with the placeholders.
            frames: (F, tokens, D).
            questions: E times (L_e,) ids.
            max_new_tokens: an answer that is longer is cut.
        """
        device, count = prefix.device, len(questions)
        lengths = torch.tensor([len(question) for question in questions], device=device)
        longest = int(lengths.max())
        ids = nn.utils.rnn.pad_sequence(questions, batch_first=True, padding_value=self.end_id)
        valid = torch.arange(longest, device=device) < lengths[:, None]
        cache = DynamicCache(config=self.model.config.text_config)
        self._language(self._embed(prefix[None], frames), prefix.new_ones(1, len(prefix)), 0, cache)
        cache.batch_repeat_interleave(count)
        seen = torch.cat([valid.new_ones(count, len(prefix)), valid], dim=1)
        words = self._language(self._embed(ids, None), seen, len(prefix), cache)
        last = words[torch.arange(count, device=device), lengths - 1]
        answers: list[list[int]] = [[] for _ in range(count)]
        seg, found = torch.zeros_like(last), torch.zeros(count, dtype=torch.bool, device=device)
        open_rows = torch.ones(count, dtype=torch.bool, device=device)
        for step in range(max_new_tokens):
            token = self.vocabulary_logits(last).argmax(-1)
            open_rows = open_rows & (token != self.end_id)
            if not open_rows.any():
                break
            for row in open_rows.nonzero().flatten().tolist():
                answers[row].append(int(token[row]))
            seen = torch.cat([seen, open_rows[:, None]], dim=1)
            position = (len(prefix) + lengths + step)[:, None]
            last = self._language(self._embed(token[:, None], None), seen, position, cache)[:, 0]
            here = open_rows & (token == self.seg_id) & ~found
            seg, found = torch.where(here[:, None], last, seg), found | here
        return Answers(tuple(tuple(answer) for answer in answers), seg, found, words)

    def _language(self, embedded: Tensor, seen: Tensor, start: int | Tensor, cache: Any) -> Tensor:
        """Go on in a cached conversation: (B, L, D) → (B, L, D); `seen` (B, all so far) hides padding."""
        positions = start + torch.arange(embedded.shape[1], device=embedded.device).expand(embedded.shape[:2])
        out = self.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=seen.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return cast(Tensor, out.last_hidden_state)

    def _embed(self, ids: Tensor, frames: Tensor | None) -> Tensor:
        """Token embeddings with the frames' embeddings in their places: (B, L, D)."""
        embedded = self.model.get_input_embeddings()(ids)
        if frames is None:
            return cast(Tensor, embedded)
        places = self.model.model.get_placeholder_mask(ids, inputs_embeds=embedded, image_features=frames)
        return cast(Tensor, embedded.masked_scatter(places, frames.to(embedded.dtype)))
