from __future__ import annotations

import numpy as np
import pytest

from salmacli.data.collate import Collator, to_pixels
from salmacli.data.conversation import IGNORE, INTERNVL, QWEN_VL, branch, pack, prefix
from salmacli.data.templates import ANSWERS, QUESTIONS
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


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_branch_knows_its_words_its_answer_and_its_seg(tokenizer, question, answer):
    one = branch(tokenizer, INTERNVL, TEXTS[1], question, answer)
    assert tokenizer.decode(one.ids[one.words]).strip() == TEXTS[1]
    assert tokenizer.decode(one.ids[one.labels != IGNORE]) == answer + "<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(int(one.ids[one.seg])) == "[SEG]"
    assert branch(tokenizer, INTERNVL, TEXTS[1], question, None).seg is None


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
        assert row.segs[n] == np.flatnonzero(row.branch == n)[one.seg]
    with pytest.raises(ValueError, match=r"\[SEG\]"):
        pack(start, [branch(tokenizer, INTERNVL, "x", QUESTIONS[0], "I see none.")])


def test_pixels_are_resized_and_normalised():
    white = np.full((10, 30, 3), 255, np.uint8)
    pixels = to_pixels([white, white[:5]], (8, 8))
    assert pixels.shape == (2, 3, 8, 8)
    assert pixels[0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229, rel=1e-5)


def test_targets_keep_their_place_when_resized(tokenizer):
    from salmacli.data.training.clips import Clip

    masks = np.zeros((1, 1, 40, 80), bool)
    masks[0, 0, :20, 40:] = True
    frame = np.zeros((40, 80, 3), np.uint8)
    clip = Clip("c", (frame,), (frame,), ("the ring",), (QUESTIONS[0],), (ANSWERS[0],), (("1",),), masks, masks[0])
    batch = Collator(tokenizer, (16, 16), 4, 64).batch([clip])
    assert batch.targets.shape == (1, 64, 64)
    assert batch.targets[0, :32, 32:].all() and batch.targets.sum() == 32 * 32
