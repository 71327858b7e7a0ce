"""Expressions → token ids: one prefix that shows the video, and one branch per expression.

A branch holds a question and its answer. Branches follow the same prefix and do not see each other, so that training
on several expressions of a video computes exactly what prediction computes for each of them alone, and both can share
the prefix.
The turns are those of InternVL's chat format for Qwen2 (no system turn).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from salmacli.data.templates import SEG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
IGNORE = -100  # the label that cross-entropy passes over


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


def prefix(tokenizer: PreTrainedTokenizerFast, frames: int, tokens_per_frame: int) -> np.ndarray:
    """Ids of the turn's beginning and of `frames` frames with their placeholders: (L,)."""
    frame = IMAGE_START + IMAGE_CONTEXT * tokens_per_frame + IMAGE_END + "\n"
    return np.asarray(_encode(tokenizer, f"{TURN_START}user\n{frame * frames}")["input_ids"], np.int64)


def branch(tokenizer: PreTrainedTokenizerFast, expression: str, question: str, answer: str | None) -> Branch:
    """Ids of one question and, unless `answer` is None, its answer.

    Args:
        expression: the referring expression, put into the question's ``{expression}``.
        question: a template of `salmacli.data.templates.QUESTIONS`.
        answer: a text, or None to leave the answer to the model.
    """
    before, after = question.split("{expression}")
    # A tokenizer may join the expression with the blank before it; the characters' offsets say which tokens are its.
    asked = f"{before}{expression}{after}{TURN_END}\n{TURN_START}assistant\n"
    encoded = _encode(tokenizer, asked, return_offsets_mapping=True)
    begin, end = len(before), len(before) + len(expression)
    words = [start < end and stop > begin for start, stop in encoded["offset_mapping"]]
    ids = list(encoded["input_ids"])
    asked_length = len(ids)
    seg = None
    if answer is not None:
        answered = list(_encode(tokenizer, f"{answer}{TURN_END}")["input_ids"])
        seg_id = tokenizer.convert_tokens_to_ids(SEG)
        seg = asked_length + answered.index(seg_id) if seg_id in answered else None
        ids += answered
        words += [False] * len(answered)
    array = np.asarray(ids, np.int64)
    labels = np.where(np.arange(len(ids)) >= asked_length, array, IGNORE)
    return Branch(array, labels, np.asarray(words, bool), seg)


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
