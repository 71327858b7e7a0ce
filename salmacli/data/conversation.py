"""Conversations → token ids: one prefix that shows the video, and one branch per dialogue about it.

A branch holds questions and their answers. Branches follow the same prefix and do not see each other, so that training
on several expressions of a video computes exactly what prediction computes for each of them alone, and both can share
the prefix.
The turns are those that Qwen and InternLM2 share; how a picture is shown, and whether a system speaks first, differs
between families (`ChatFormat`). The prefix ends with a token that no tokenizer joins with what follows, so that prefix
and branch, tokenised apart, are what the whole text would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from salmacli.data.templates import SEG
from salmacli.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
IGNORE = -100  # the label that cross-entropy passes over
PHRASE_START, PHRASE_END = "<p>", "</p>"
REGION_START, REGION_END = "<vp>", "</vp>"
REGION = REGION_START + REGION_END  # stands in a question where a region is pointed at


@dataclass(frozen=True)
class ChatFormat:
    """How a family of models is shown pictures.

    Attributes:
        image_start, image_context, image_end: special tokens around a picture, and the placeholder in between.
        separator: text after every picture.
        system: what the system says before the user, or None (no such turn).
    """

    image_start: str
    image_context: str
    image_end: str
    separator: str
    system: str | None


# Source: the chat templates that OpenGVLab and Qwen publish beside their weights; Sa2VA speaks to InternVL without a
# system turn.
INTERNVL = ChatFormat("<img>", "<IMG_CONTEXT>", "</img>", "\n", None)
QWEN_VL = ChatFormat("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "", "You are a helpful assistant.")


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        question: a template of `salmacli.data.templates`, or plain text; holds `REGION` where a region is pointed at.
        answer: a text, or None to leave the answer to the model.
        expression: put into the template's ``{expression}``; None where the question is plain text.
    """

    question: str
    answer: str | None
    expression: str | None = None


@dataclass(frozen=True)
class Branch:
    """Questions with their answers.

    Attributes:
        ids: (L,) token ids.
        labels: (L,) the ids where an answer stands, `IGNORE` elsewhere.
        words: (L,) True on the tokens of the expressions in the questions.
        cells: (L,) which of the picture's own positions a region's placeholder repeats; −1 elsewhere.
        segs: positions of all `[SEG]` of the answers.
        phrases: per `[SEG]`, the positions of the words that it stands for: the phrase before it, marked as such in the
            answer, or else the expression in the question.
    """

    ids: np.ndarray
    labels: np.ndarray
    words: np.ndarray
    cells: np.ndarray
    segs: tuple[int, ...] = ()
    phrases: tuple[np.ndarray, ...] = ()

    def cut(self, length: int) -> Branch:
        """Its first tokens, at least none; what stands behind them is gone."""
        first = slice(max(length, 0))
        kept = sum(seg < length for seg in self.segs)
        arrays = (self.ids[first], self.labels[first], self.words[first], self.cells[first])
        return Branch(*arrays, self.segs[:kept], self.phrases[:kept])


@dataclass(frozen=True)
class Packed:
    """The prefix and all branches of one video in one row.

    Attributes:
        ids, labels, cells: (L,) as in `Branch`.
        branch: (L,) −1 on the prefix, else the number of the branch.
        positions: (L,) position ids; every branch starts where the prefix ends.
        segs, phrases: as in `Branch`, of all branches, with positions in the row.
    """

    ids: np.ndarray
    labels: np.ndarray
    cells: np.ndarray
    branch: np.ndarray
    positions: np.ndarray
    segs: tuple[int, ...]
    phrases: tuple[np.ndarray, ...]


def prefix(tokenizer: PreTrainedTokenizerFast, chat: ChatFormat, frames: Sequence[int]) -> np.ndarray:
    """Ids of the conversation's beginning up to the end of the last picture: (L,).

    Args:
        tokenizer: of the model; where it puts a token in front of every text, so does the prefix.
        chat: of the model.
        frames: placeholders of each picture, in order; several tiles of one picture are one picture. None is a
            conversation about nothing that is seen.
    """
    system = f"{TURN_START}system\n{chat.system}{TURN_END}\n" if chat.system is not None else ""
    shown = (chat.image_start + chat.image_context * count + chat.image_end for count in frames)
    text = f"{system}{TURN_START}user\n{chat.separator.join(shown)}"
    ids = list(_encode(tokenizer, text)["input_ids"])
    first = tokenizer("a")["input_ids"][0]
    begin = [first] if first == tokenizer.bos_token_id else []
    return np.asarray(begin + ids, np.int64)


def branch(
    tokenizer: PreTrainedTokenizerFast, chat: ChatFormat, expression: str, question: str, answer: str | None
) -> Branch:
    """One question about an expression and, unless `answer` is None, its answer; see `Turn` and `dialogue`."""
    return dialogue(tokenizer, chat, [Turn(question, answer, expression)])


def dialogue(
    tokenizer: PreTrainedTokenizerFast,
    chat: ChatFormat,
    turns: Sequence[Turn],
    regions: Sequence[np.ndarray] = (),
    pictures: bool = True,
) -> Branch:
    """Ids of questions and answers, each of which sees those before it.

    Args:
        tokenizer, chat: of the model.
        turns: at least one.
        regions: per `REGION` in the questions, the positions of the picture that it covers.
        pictures: whether the prefix shows any.

    Raises:
        DataError: a text holds the placeholder, or another number of `REGION` than there are regions.
    """
    pointed, named = list(regions), sum(turn.question.count(REGION) for turn in turns)
    if named != len(pointed):
        raise DataError(f"its questions point at {named} regions, and it has {len(pointed)}", "name each of them once")
    parts: list[Branch] = []
    for number, turn in enumerate(turns):
        here = turn.question.count(REGION)
        begin = f"\n{TURN_START}user\n" if number else chat.separator if pictures else ""
        parts.append(_question(tokenizer, chat, begin, turn, pointed[:here]))
        del pointed[:here]
        if turn.answer is not None:
            parts.append(_answer(tokenizer, turn.answer, parts[-1].words))
    joined = _joined(parts)
    placeholders = joined.ids == tokenizer.convert_tokens_to_ids(chat.image_context)
    if not np.array_equal(placeholders, joined.cells >= 0):
        raise DataError(f"its texts name {chat.image_context}", "take it out of them")
    return joined


def answer_ids(tokenizer: PreTrainedTokenizerFast, answer: str) -> list[int]:
    """Ids of an answer with the end of its turn."""
    return list(_encode(tokenizer, f"{answer}{TURN_END}")["input_ids"])


def pack(prefix_ids: np.ndarray, branches: Sequence[Branch]) -> Packed:
    """Put branches behind their common prefix."""
    start = len(prefix_ids)
    behind = _joined(branches)
    return Packed(
        ids=np.concatenate([prefix_ids, behind.ids]),
        labels=np.concatenate([np.full(start, IGNORE), behind.labels]),
        cells=np.concatenate([np.full(start, -1), behind.cells]),
        branch=np.concatenate([np.full(start, -1)] + [np.full(len(one.ids), n) for n, one in enumerate(branches)]),
        positions=np.concatenate([np.arange(start)] + [start + np.arange(len(one.ids)) for one in branches]),
        segs=tuple(start + seg for seg in behind.segs),
        phrases=tuple(start + phrase for phrase in behind.phrases),
    )


def _question(
    tokenizer: PreTrainedTokenizerFast, chat: ChatFormat, begin: str, turn: Turn, regions: Sequence[np.ndarray]
) -> Branch:
    """What is asked, up to where the answer begins."""
    question = turn.question
    for cells in regions:
        question = question.replace(REGION, f"{REGION_START}{chat.image_context * len(cells)}{REGION_END}", 1)
    before, expression, after = question, "", ""
    if turn.expression is not None:
        before, after = question.split("{expression}")
        # A full stop is not doubled, and does not stand before another mark.
        stop = turn.expression.endswith(".") and after[:1] in (",", "?")
        expression = turn.expression[:-1] if stop else turn.expression
        after = after.removeprefix(".") if expression.endswith(".") else after
    begin += before
    # A tokenizer may join the expression with the blank before it; the characters' offsets say which tokens are its.
    asked = f"{begin}{expression}{after}{TURN_END}\n{TURN_START}assistant\n"
    encoded = _encode(tokenizer, asked, return_offsets_mapping=True)
    ids = np.asarray(encoded["input_ids"], np.int64)
    first, last = len(begin), len(begin) + len(expression)
    words = np.array([start < last and stop > first for start, stop in encoded["offset_mapping"]])
    cells = np.full(len(ids), -1)
    # A text that names the placeholder itself is found out by `dialogue`.
    places = np.flatnonzero(ids == tokenizer.convert_tokens_to_ids(chat.image_context))
    pointed = np.concatenate([_NOWHERE, *regions])[: len(places)]
    cells[places[: len(pointed)]] = pointed
    return Branch(ids, np.full(len(ids), IGNORE), words, cells)


def _answer(tokenizer: PreTrainedTokenizerFast, answer: str, asked: np.ndarray) -> Branch:
    """What is answered; positions of phrases count from the beginning of the question, as `asked` (L,) does."""
    ids = np.asarray(answer_ids(tokenizer, answer), np.int64)
    segs = np.flatnonzero(ids == tokenizer.convert_tokens_to_ids(SEG))
    starts, ends = (np.flatnonzero(ids == tokenizer.convert_tokens_to_ids(mark)) for mark in (PHRASE_START, PHRASE_END))
    phrases = []
    for seg in segs:
        # The last phrase that ends before this [SEG].
        end = ends[: np.searchsorted(ends, seg)][-1:]
        start = starts[: np.searchsorted(starts, end[0])][-1:] if len(end) else end
        inside = np.arange(start[0] + 1, end[0]) if len(start) else _NOWHERE
        phrases.append(inside if len(inside) else np.flatnonzero(asked) - len(asked))
    none = np.full(len(ids), -1)
    return Branch(ids, ids, np.zeros(len(ids), bool), none, tuple(int(seg) for seg in segs), tuple(phrases))


def _joined(parts: Sequence[Branch]) -> Branch:
    """Branches one after the other, as one."""
    offsets = np.cumsum([0, *(len(one.ids) for one in parts)])
    pairs = list(zip(offsets, parts, strict=False))
    return Branch(
        ids=np.concatenate([_NOWHERE, *(one.ids for one in parts)]),
        labels=np.concatenate([_NOWHERE, *(one.labels for one in parts)]),
        words=np.concatenate([np.zeros(0, bool), *(one.words for one in parts)]),
        cells=np.concatenate([_NOWHERE, *(one.cells for one in parts)]),
        segs=tuple(int(offset) + seg for offset, one in pairs for seg in one.segs),
        phrases=tuple(offset + phrase for offset, one in pairs for phrase in one.phrases),
    )


_NOWHERE = np.zeros(0, np.int64)


def _encode(tokenizer: PreTrainedTokenizerFast, text: str, **options: Any) -> Any:
    return tokenizer(text, add_special_tokens=False, **options)
