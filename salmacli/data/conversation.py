"""Expressions → token ids: one prefix that shows the video, and one branch per expression.

A branch holds a question and its answer. Branches follow the same prefix and do not see each other, so that training
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
IGNORE = -100  # the label that cross-entropy passes over


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
class Branch:
    """One question with its answer.

    Attributes:
        ids: (L,) token ids.
        labels: (L,) the ids where the answer stands, `IGNORE` elsewhere.
        words: (L,) True on the tokens of the expression.
        seg: position of the first `[SEG]`, or None (a question without answer).
    """

    ids: np.ndarray
    labels: np.ndarray
    words: np.ndarray
    seg: int | None


@dataclass(frozen=True)
class Packed:
    """The prefix and all branches of one video in one row.

    Attributes:
        ids, labels, words: (L,) as in `Branch`.
        branch: (L,) −1 on the prefix, else the number of the branch.
        positions: (L,) position ids; every branch starts where the prefix ends.
        segs: one position per branch.
    """

    ids: np.ndarray
    labels: np.ndarray
    words: np.ndarray
    branch: np.ndarray
    positions: np.ndarray
    segs: tuple[int, ...]


def prefix(tokenizer: PreTrainedTokenizerFast, chat: ChatFormat, frames: Sequence[int]) -> np.ndarray:
    """Ids of the conversation's beginning up to the end of the last picture: (L,).

    Args:
        tokenizer: of the model; where it puts a token in front of every text, so does the prefix.
        chat: of the model.
        frames: placeholders of each picture, in order; several tiles of one picture are one picture.
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
    """Ids of one question and, unless `answer` is None, its answer.

    Args:
        tokenizer, chat: of the model.
        expression: the referring expression, put into the question's ``{expression}``; a full stop is not doubled.
        question: a template of `salmacli.data.templates`.
        answer: a text, or None to leave the answer to the model.
    """
    before, after = question.split("{expression}")
    before = chat.separator + before
    if expression.endswith("."):
        after = after.removeprefix(".")
    # A tokenizer may join the expression with the blank before it; the characters' offsets say which tokens are its.
    asked = f"{before}{expression}{after}{TURN_END}\n{TURN_START}assistant\n"
    encoded = _encode(tokenizer, asked, return_offsets_mapping=True)
    begin, end = len(before), len(before) + len(expression)
    words = [start < end and stop > begin for start, stop in encoded["offset_mapping"]]
    ids = list(encoded["input_ids"])
    asked_length = len(ids)
    seg = None
    if answer is not None:
        answered = answer_ids(tokenizer, answer)
        seg_id = tokenizer.convert_tokens_to_ids(SEG)
        seg = asked_length + answered.index(seg_id) if seg_id in answered else None
        ids += answered
        words += [False] * len(answered)
    array = np.asarray(ids, np.int64)
    labels = np.where(np.arange(len(ids)) >= asked_length, array, IGNORE)
    return Branch(array, labels, np.asarray(words, bool), seg)


def answer_ids(tokenizer: PreTrainedTokenizerFast, answer: str) -> list[int]:
    """Ids of an answer with the end of its turn."""
    return list(_encode(tokenizer, f"{answer}{TURN_END}")["input_ids"])


def pack(prefix_ids: np.ndarray, branches: list[Branch]) -> Packed:
    """Put branches behind their common prefix.

    Raises:
        ValueError: a branch has no `[SEG]`.
    """
    start, offset, segs = len(prefix_ids), len(prefix_ids), []
    for one in branches:
        if one.seg is None:
            raise ValueError("a branch that is trained on needs a [SEG] in its answer")
        segs.append(offset + one.seg)
        offset += len(one.ids)
    nothing = np.full(start, IGNORE, np.int64)
    return Packed(
        ids=np.concatenate([prefix_ids, *(one.ids for one in branches)]),
        labels=np.concatenate([nothing, *(one.labels for one in branches)]),
        words=np.concatenate([np.zeros(start, bool), *(one.words for one in branches)]),
        branch=np.concatenate([np.full(start, -1)] + [np.full(len(one.ids), n) for n, one in enumerate(branches)]),
        positions=np.concatenate([np.arange(start)] + [start + np.arange(len(one.ids)) for one in branches]),
        segs=tuple(segs),
    )


def _encode(tokenizer: PreTrainedTokenizerFast, text: str, **options: Any) -> Any:
    return tokenizer(text, add_special_tokens=False, **options)
