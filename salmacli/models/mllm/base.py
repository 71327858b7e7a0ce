"""What all families of multimodal LLMs share: transformers' own modules behind one API.

Frames are encoded once per video, and the answers to several expressions continue one common prefix
(`salmacli.data.conversation`). The language model is called with embeddings, positions and a mask of our own making,
which is what lets branches share a prefix without seeing each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from salmacli.config.schema import MllmConfig
from salmacli.data.conversation import TURN_END, TURN_START, ChatFormat
from salmacli.data.templates import SEG
from salmacli.errors import ConfigError

RGB = tuple[float, float, float]
_LOGITS_AT_ONCE = 1 << 26  # 256 MiB of float32


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


@dataclass(frozen=True)
class Prefix:
    """The beginning of a conversation, read.

    Attributes:
        cache: keys and values of every layer, one row.
        length: its tokens.
        end: the position of what follows.
    """

    cache: DynamicCache
    length: int
    end: int


class Mllm(nn.Module, ABC):
    """A multimodal LLM with its tokenizer's `[SEG]`.

    A family names transformers' classes and says how it sees a frame; everything else is the same for all.

    Attributes:
        model: transformers' own model; its parameters have transformers' own names.
        chat: how it is shown pictures.
        mean, std: what its frames are normalised with, of values in [0, 1].
        tiles: whether it is shown a large picture as tiles.
        seg_id, end_id: tokens `[SEG]` and the end of a turn.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]
    chat: ClassVar[ChatFormat]
    mean: ClassVar[RGB]
    std: ClassVar[RGB]
    tiles: ClassVar[bool] = False

    def __init__(self, config: MllmConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        ids = _special_ids(tokenizer, self.chat)
        self.model: Any = self.model_class(self.config_class(**self._native(config.native, ids, len(tokenizer))))
        _round_rotary(self.model, config.rotary)
        self.seg_id, self.end_id = ids[SEG], ids[TURN_END]
        self.image_id = ids[self.chat.image_context]

    def _native(self, given: dict[str, Any], ids: dict[str, int], tokens: int) -> dict[str, Any]:
        """Arguments of transformers' configuration: what is given, with what follows from the tokenizer."""
        for section in ("vision_config", "text_config"):
            if not isinstance(given.get(section), dict):
                raise ConfigError(f"model.mllm.native.{section} is missing", "give that section of the model's config")
        # Some of transformers' configurations tie the head to the embedding unless told otherwise, without a word.
        tied = bool(given.get("tie_word_embeddings", False))
        text = {"vocab_size": tokens, **given["text_config"], "tie_word_embeddings": tied}
        if text["vocab_size"] < tokens:
            raise ConfigError(
                f"the tokenizer has {tokens} tokens and the embedding {text['vocab_size']} rows",
                "leave out model.mllm.native.text_config.vocab_size, or set it to at least that",
            )
        native = {key: value for key, value in given.items() if key != "model_type"}
        return {
            **native,
            "text_config": text,
            "tie_word_embeddings": tied,
            "image_token_id": ids[self.chat.image_context],
        }

    @property
    def width(self) -> int:
        """D, the width of the hidden states."""
        return int(self.model.config.text_config.hidden_size)

    @property
    @abstractmethod
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of the frames it reads."""

    @property
    @abstractmethod
    def tokens_per_frame(self) -> int:
        """Language positions that one frame takes."""

    @abstractmethod
    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Normalised frames (F, 3, h, w) → (F, tokens, W), what `forward` and `answer` read of them.

        W is D, or a multiple of D where the family feeds the LLM at several depths.
        """

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The modules by what they do: vision tower, vision-language projector, language model, language head."""

    def forward(self, ids: Tensor, looks: Tensor | None, attention: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states of packed conversations.

        Args:
            ids: (B, L) tokens, G placeholders among them.
            looks: (G, W) what stands in for each placeholder, in order, rows of what `encode_frames` gives, or None.
            attention: (B, L, L) True where a query (second axis) may see a key (third).
            positions: (B, L) how many tokens stand before each one in its own conversation.

        Returns:
            (B, L, D).
        """
        seen = self._read(ids, looks)
        dtype = seen["inputs_embeds"].dtype
        if torch.is_autocast_enabled(attention.device.type):
            # Else every layer would make, and keep for its gradient, a copy of its own.
            dtype = torch.get_autocast_dtype(attention.device.type)
        mask = torch.zeros(attention.shape, dtype=dtype, device=attention.device)
        mask = mask.masked_fill(~attention, torch.finfo(dtype).min).unsqueeze(1)
        return self._language(mask, self._places(ids, positions), use_cache=False, **seen)

    def checkpoint_activations(self) -> None:
        """Compute activations a second time for their gradients instead of keeping them."""
        # The second name is what older versions of transformers have, and newer ones warn of.
        enable = getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})

    def vocabulary_logits(self, hidden: Tensor) -> Tensor:
        """(…, D) → (…, V)."""
        return cast(Tensor, self.model.lm_head(hidden))

    def cross_entropy(self, hidden: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropies (A,) of answer tokens (A,), each predicted from its state (A, D).

        The vocabulary is wide (151,655 words), so logits of a few positions at a time are made, and once more for the
        gradient, rather than kept.
        """
        width = self.model.lm_head.out_features
        parts = zip(*(part.split(max(1, _LOGITS_AT_ONCE // width)) for part in (hidden, answers)), strict=True)
        return torch.cat([checkpoint(self._cross_entropy, *part, use_reentrant=False) for part in parts])

    def _cross_entropy(self, hidden: Tensor, answers: Tensor) -> Tensor:
        return F.cross_entropy(self.vocabulary_logits(hidden).float(), answers, reduction="none")

    @torch.no_grad()
    def read(self, prefix: Tensor, frames: Tensor) -> Prefix:
        """Read the beginning of a conversation once, for any number of answers.

        Args:
            prefix: (P,) ids with the placeholders.
            frames: (F, tokens, W).
        """
        cache = DynamicCache(config=self.model.config.text_config)
        places = self._places(prefix[None], torch.arange(len(prefix), device=prefix.device)[None])
        seen = self._read(prefix[None], frames.flatten(0, 1))
        self._language(prefix.new_ones(1, len(prefix)), places, past_key_values=cache, use_cache=True, **seen)
        return Prefix(cache, len(prefix), int(places.max()) + 1)  # a frame may take fewer positions than tokens

    @torch.no_grad()
    def answer(
        self,
        prefix: Prefix,
        questions: Sequence[Tensor],
        max_new_tokens: int,
        forced: Sequence[Tensor | None] | None = None,
    ) -> Answers:
        """Answer several questions about one video greedily.

        Args:
            prefix: what `read` made; it is not changed.
            questions: E times (L_e,) ids.
            max_new_tokens: an answer of the model that is longer is cut.
            forced: per question the ids that the model must say, whole, or None to let it speak.
        """
        device, count = self.model.device, len(questions)
        lengths = torch.tensor([len(question) for question in questions], device=device)
        ids = nn.utils.rnn.pad_sequence(list(questions), batch_first=True, padding_value=self.end_id)
        columns = torch.arange(ids.shape[1], device=device)
        past = {"past_key_values": deepcopy(prefix.cache), "use_cache": True}
        past["past_key_values"].batch_repeat_interleave(count)
        seen = torch.cat([ids.new_ones(count, prefix.length), (columns < lengths[:, None]).long()], dim=1)
        words = self._language(seen, (prefix.end + columns).expand(count, -1), **past, **self._read(ids))
        last = words[torch.arange(count, device=device), lengths - 1]
        answers: list[list[int]] = [[] for _ in range(count)]
        seg, found = torch.zeros_like(last), torch.zeros(count, dtype=torch.bool, device=device)
        open_rows = torch.ones_like(found)
        for step, said in enumerate(self._script(forced or [None] * count, max_new_tokens, device)):
            token = torch.where(said < 0, self.vocabulary_logits(last).argmax(-1), said)
            open_rows = open_rows & (token != self.end_id)
            spoken, is_open = torch.stack([token, open_rows.long()]).tolist()  # one wait for the device per token
            if not any(is_open):
                break
            for answer, one, goes_on in zip(answers, spoken, is_open, strict=True):
                if goes_on:
                    answer.append(one)
            seen = torch.cat([seen, open_rows[:, None].long()], dim=1)
            place = (prefix.end + lengths + step)[:, None]
            last = self._language(seen, place, **past, **self._read(token[:, None]))[:, 0]
            here = open_rows & (token == self.seg_id) & ~found
            seg, found = torch.where(here[:, None], last, seg), found | here
        return Answers(tuple(tuple(answer) for answer in answers), seg, found, words)

    def _script(self, forced: Sequence[Tensor | None], most: int, device: torch.device) -> Tensor:
        """(steps, E) what each answer must say at each step; −1 where the model chooses."""
        rows = [torch.full((most,), -1, device=device) if ids is None else ids.to(device) for ids in forced]
        return nn.utils.rnn.pad_sequence(rows, padding_value=self.end_id)

    def _language(self, mask: Tensor, places: Tensor, **seen: Any) -> Tensor:
        """Run the language model: (B, L, D); `mask` is (B, 1, L, L) to add, or (B, all so far) 0 on padding."""
        out = self.model.model.language_model(attention_mask=mask, position_ids=places, **seen)
        return cast(Tensor, out.last_hidden_state)

    def _read(self, ids: Tensor, looks: Tensor | None = None) -> dict[str, Any]:
        """What the language model reads: token embeddings (B, L, D) with (G, W) looks in the places of placeholders."""
        embedded = self.model.get_input_embeddings()(ids)
        if looks is not None:
            places = ids == self.image_id
            if int(places.sum()) != len(looks):
                raise ValueError(f"{int(places.sum())} placeholders for {len(looks)} looks")
            embedded = embedded.masked_scatter(places.unsqueeze(-1), looks.to(embedded.dtype))
        return {"inputs_embeds": embedded}

    def _places(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Position ids of the language model, from (B, L) tokens and their counted positions."""
        return positions


def _round_rotary(model: nn.Module, what: str) -> None:
    """Round what is in no checkpoint: buffers of rotary frequencies, or the cosines and sines that come of them.

    At position 1,350 the digits that a frequency loses are a large part of a turn: the state at `[SEG]` differs in the
    fourth digit.
    """
    if what == "rounded-frequencies":
        for name, buffer in model.named_buffers():
            if name.endswith("inv_freq"):
                buffer.copy_(buffer.to(torch.bfloat16))
    elif what == "rounded-tables":
        for name, module in model.named_modules():
            if name.endswith("rotary_emb"):
                module.register_forward_hook(_rounded_tables)


def _rounded_tables(_: nn.Module, __: Any, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return tuple(table.to(torch.bfloat16).to(table.dtype) for table in tables)


def _special_ids(tokenizer: PreTrainedTokenizerFast, chat: ChatFormat) -> dict[str, int]:
    """Ids of the tokens that conversations are made of."""
    names = (TURN_START, TURN_END, chat.image_start, chat.image_context, chat.image_end, SEG)
    vocabulary = tokenizer.get_vocab()
    if missing := [name for name in names if name not in vocabulary]:
        raise ConfigError(
            f"the tokenizer lacks {', '.join(missing)}, which this kind of model needs",
            "take the model's own tokenizer",
        )
    return {name: vocabulary[name] for name in names}
