"""What the LLM says of a window: it reads the frames once and answers the expressions in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from salmacli.data.conversation import answer_ids, branch, prefix
from salmacli.engine.prediction.batches import BatchSize
from salmacli.engine.prediction.sights import Mode, Shown, question
from salmacli.models.salma import Language, Salma


@dataclass(frozen=True)
class Heard:
    """Answers to E expressions.

    Attributes:
        language: of all E; meaningless where there is no `[SEG]`.
        found: per expression, whether its answer has one.
        several: per expression, whether it has more than one; the first is used.
        answers: what was said.
    """

    language: Language
    found: tuple[bool, ...]
    several: tuple[bool, ...]
    answers: tuple[str, ...]

    def without_words(self) -> Heard:
        """What is worth keeping of a window that is done."""
        seg, words, valid = self.language.seg, self.language.words, self.language.valid
        return replace(self, language=Language(seg, words[:, :0].clone(), valid[:, :0].clone()))


class Conversation:
    """One window as the LLM has read it.

    Args:
        model: the LLM is its part.
        mode: decides how questions are worded.
        shown: what the LLM sees.
        frames, expressions: how many of them go through it at once.
        max_new_tokens: longer answers are cut.
    """

    def __init__(
        self, model: Salma, mode: Mode, shown: Shown, frames: BatchSize, expressions: BatchSize, max_new_tokens: int
    ) -> None:
        self.model, self.mode, self.batch, self.most = model, mode, expressions, max_new_tokens
        mllm, pixels = model.mllm, shown.pixels.to(model.dtype)
        start = torch.from_numpy(prefix(model.tokenizer, mllm.chat, shown.pictures)).to(model.device)
        seen = frames.over(len(pixels), lambda part: mllm.encode_frames(pixels[part].to(model.device)))
        self.read = mllm.read(start, torch.cat(list(seen)))

    def ask(self, texts: Sequence[str], answer: str | None = None) -> Heard:
        """Ask for every text.

        Args:
            texts: E expressions.
            answer: what the LLM says, instead of its own words.
        """
        parts = list(self.batch.over(len(texts), lambda part: self._ask(texts[part], answer)))
        width = max(part.language.words.shape[1] for part in parts)
        language = Language(
            torch.cat([part.language.seg for part in parts]),
            torch.cat([_wide(part.language.words, width) for part in parts]),
            torch.cat([_wide(part.language.valid, width) for part in parts]),
        )
        return Heard(
            language,
            tuple(one for part in parts for one in part.found),
            tuple(one for part in parts for one in part.several),
            tuple(one for part in parts for one in part.answers),
        )

    def _ask(self, texts: Sequence[str], answer: str | None) -> Heard:
        model, device, tokenizer = self.model, self.model.device, self.model.tokenizer
        asked = [branch(tokenizer, model.mllm.chat, text, question(self.mode, text), None) for text in texts]
        questions = [torch.from_numpy(one.ids).to(device) for one in asked]
        forced = None if answer is None else [torch.tensor(answer_ids(tokenizer, answer), device=device)] * len(texts)
        out = model.mllm.answer(self.read, questions, self.most, forced=forced)
        columns = [torch.from_numpy(np.flatnonzero(one.words)).to(device) for one in asked]
        padded = nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=-1)
        words = out.words[torch.arange(len(texts), device=device).unsqueeze(1), padded.clamp(min=0)]
        return Heard(
            model.language(out.seg, words, padded >= 0),
            tuple(out.found.tolist()),
            tuple(ids.count(model.mllm.seg_id) > 1 for ids in out.ids),
            tuple(tokenizer.decode(ids).strip() for ids in out.ids),
        )


def _wide(rows: torch.Tensor, width: int) -> torch.Tensor:
    """(E, N, …) → (E, width, …), zeros behind."""
    return torch.cat([rows, rows.new_zeros(len(rows), width - rows.shape[1], *rows.shape[2:])], dim=1)
