from __future__ import annotations

import numpy as np
import pytest

from salmacli.data.conversation import IGNORE, INTERNVL, QWEN_VL, Turn, branch, dialogue, pack, prefix
from salmacli.data.templates import ANSWERS, ASKED, DESCRIBED, QUESTIONS
from salmacli.errors import DataError
from salmacli.models.tokenizer import build_tokenizer, special_tokens

TEXTS = ["the red circle", "the big blue square left of the ring"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TEXTS, 600)


def test_tokenizer_knows_every_byte_and_its_special_tokens(tokenizer):
    strange = "the child who jumps – ça va? 犬 🐕"
    assert tokenizer.decode(tokenizer(strange)["input_ids"]) == strange
    assert len(tokenizer("circle square")["input_ids"]) <= 4, "words of the templates are few tokens"
    for token in special_tokens(INTERNVL):
        assert tokenizer.convert_ids_to_tokens(tokenizer(token)["input_ids"]) == [token]


def test_tokenizer_depends_only_on_the_set_of_expressions():
    first, second = build_tokenizer(TEXTS, 600), build_tokenizer(TEXTS[::-1] * 3, 600)
    assert first.get_vocab() == second.get_vocab()


@pytest.mark.parametrize("question", [*QUESTIONS, *ASKED, *DESCRIBED])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_branch_knows_its_words_its_answer_and_its_seg(tokenizer, question, answer):
    one = branch(tokenizer, INTERNVL, TEXTS[1], question, answer)
    assert tokenizer.decode(one.ids[one.words]).strip() == TEXTS[1]
    assert tokenizer.decode(one.ids[one.labels != IGNORE]) == answer + "<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(one.ids[list(one.segs)]) == ["[SEG]"]
    assert [phrase.tolist() for phrase in one.phrases] == [np.flatnonzero(one.words).tolist()]
    assert branch(tokenizer, INTERNVL, TEXTS[1], question, None).segs == ()


@pytest.mark.parametrize("chat", [INTERNVL, QWEN_VL])
def test_prefix_and_branch_apart_are_the_whole_text(tokenizer, chat):
    picture = chat.image_start + chat.image_context * 3 + chat.image_end
    system = f"<|im_start|>system\n{chat.system}<|im_end|>\n" if chat.system else ""
    question = f"Please segment {TEXTS[0]}.<|im_end|>\n<|im_start|>assistant\n"
    whole = f"{system}<|im_start|>user\n{picture}{chat.separator}{picture}{chat.separator}{question}"
    apart = [*prefix(tokenizer, chat, [3, 3]), *branch(tokenizer, chat, TEXTS[0], QUESTIONS[0], None).ids]
    assert apart == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_a_full_stop_is_not_doubled(tokenizer):
    plain = branch(tokenizer, INTERNVL, "the ring", QUESTIONS[0], None)
    dotted = branch(tokenizer, INTERNVL, "the ring.", QUESTIONS[0], None)
    assert np.array_equal(plain.ids, dotted.ids)
    assert dotted.words.sum() == plain.words.sum() + 1
    assert ".?" not in tokenizer.decode(branch(tokenizer, INTERNVL, "the ring.", "Is it {expression}?", None).ids)


def test_a_prefix_begins_as_every_text_of_its_tokenizer(tokenizer):
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    begun = deepcopy(tokenizer)
    begun.add_special_tokens({"bos_token": "<s>"})
    ids = [("<s>", begun.bos_token_id)]
    begun.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=ids)
    start = prefix(begun, INTERNVL, [1])
    assert start[0] == begun.bos_token_id
    assert np.array_equal(start[1:], prefix(tokenizer, INTERNVL, [1]))


def test_packed_branches_start_where_the_prefix_ends(tokenizer):
    start = prefix(tokenizer, INTERNVL, [3, 3])
    assert (start == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")).sum() == 6
    branches = [branch(tokenizer, INTERNVL, text, QUESTIONS[0], ANSWERS[0]) for text in TEXTS]
    row = pack(start, branches)
    for n, one in enumerate(branches):
        assert np.array_equal(row.ids[row.branch == n], one.ids)
        assert row.positions[row.branch == n][0] == len(start)
        assert row.segs[n] == np.flatnonzero(row.branch == n)[one.segs[0]]
        assert np.array_equal(row.ids[row.phrases[n]], one.ids[one.words])


def test_rounds_of_a_dialogue_are_one_chat(tokenizer):
    turns = [Turn("What is it?", "A ring."), Turn("Where?", "On the <p> left </p> [SEG].")]
    one = dialogue(tokenizer, INTERNVL, turns)
    whole = (
        "\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA ring.<|im_end|>\n"
        "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nOn the <p> left </p> [SEG].<|im_end|>"
    )
    assert one.ids.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
    answered = tokenizer.decode(one.ids[one.labels != IGNORE])
    assert answered == "A ring.<|im_end|>On the <p> left </p> [SEG].<|im_end|>"
    assert tokenizer.decode(one.ids[one.phrases[0]]).strip() == "left"
    assert not one.words.any() and len(one.segs) == 1
    alone = dialogue(tokenizer, INTERNVL, turns, pictures=False)
    assert tokenizer.decode(alone.ids).startswith("What")


@pytest.mark.parametrize(
    ("answer", "phrases"),
    [
        ("<p> a ring </p> [SEG] and <p> a square </p> [SEG]", ["a ring", "a square"]),
        ("<p> a ring </p> [SEG] [SEG]", ["a ring", "a ring"]),
        ("It is [SEG], <p> a ring </p> [SEG]", ["the dog", "a ring"]),
        ("a ring </p> [SEG] <p> a square [SEG]", ["the dog", "the dog"]),
        ("<p> </p> [SEG]", [""]),
    ],
)
def test_a_seg_stands_for_the_phrase_before_it_or_for_what_was_asked(tokenizer, answer, phrases):
    one = branch(tokenizer, INTERNVL, "the dog", QUESTIONS[0], answer)
    assert [tokenizer.decode(one.ids[phrase]).strip() for phrase in one.phrases] == phrases


def test_what_is_cut_is_the_beginning_of_the_whole(tokenizer):
    one = dialogue(tokenizer, INTERNVL, [Turn("What?", "[SEG] and [SEG]")])
    for length in range(-1, len(one.ids) + 2):
        part = one.cut(length)
        first = max(length, 0)
        for name in ("ids", "labels", "words", "cells"):
            assert np.array_equal(getattr(part, name), getattr(one, name)[:first])
        assert part.segs == tuple(seg for seg in one.segs if seg < length) and len(part.phrases) == len(part.segs)


def test_placeholders_stand_for_regions_only(tokenizer):
    turn = Turn("What is <vp></vp> beside <vp></vp>?", "A ring.")
    cells = [np.array([3, 4]), np.array([7])]
    one = dialogue(tokenizer, INTERNVL, [turn], cells)
    assert one.cells[one.cells >= 0].tolist() == [3, 4, 7]
    assert set(tokenizer.convert_ids_to_tokens(one.ids[one.cells >= 0])) == {"<IMG_CONTEXT>"}
    for wrong in (cells[:1], [*cells, cells[0]]):
        with pytest.raises(DataError, match="point at 2 regions, and it has"):
            dialogue(tokenizer, INTERNVL, [turn], wrong)
    for texts in (("the <IMG_CONTEXT>", None), ("the ring", "<IMG_CONTEXT> [SEG]")):
        with pytest.raises(DataError, match="IMG_CONTEXT"):
            branch(tokenizer, INTERNVL, texts[0], QUESTIONS[0], texts[1])
