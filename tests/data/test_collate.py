"""What a batch holds: masks in their order, conversations that are cut, pictures in tiles, regions, nothing at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from salmacli.data.collate import Collator, to_pixels
from salmacli.data.conversation import IGNORE, INTERNVL, QWEN_VL, Turn
from salmacli.data.templates import ANSWERS, QUESTIONS
from salmacli.data.training.clips import BadClip, Clip
from salmacli.models.tokenizer import build_tokenizer

TEXTS = ("the ring", "the big blue square", "the dog")
PLACEHOLDER = "<IMG_CONTEXT>"
SIDE = 32


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer([*TEXTS, "what is it", "a dog and a cat"], 600)


@pytest.fixture(scope="module")
def collator(tokenizer) -> Collator:
    """Pictures of 16 × 16 with 4 × 4 language positions each."""
    return Collator(tokenizer, (16, 16), 16, SIDE)


def clip(texts: tuple[str, ...] = TEXTS, count: int = 2, name: str = "c", **changes: object) -> Clip:
    rng = np.random.default_rng(0)
    pictures = tuple(rng.integers(0, 255, (count, 20, 40, 3)).astype(np.uint8))
    made = Clip(
        name=name,
        shown=pictures,
        frames=pictures,
        dialogues=tuple((Turn(QUESTIONS[0], ANSWERS[0], text),) for text in texts),
        targets=tuple((str(n),) for n in range(len(texts))),
        masks=rng.random((len(texts), count, 20, 40)) > 0.5,
        foreground=rng.random((count, 20, 40)) > 0.5,
    )
    return replace(made, **changes)


def talk(*turns: Turn, **changes: object) -> Clip:
    empty = {"masks": np.zeros((0, 0, 20, 40), bool), "foreground": np.zeros((0, 20, 40), bool), "frames": ()}
    return clip((), 1, dialogues=(turns,), targets=(), still=True, **{**empty, **changes})


def words_of(collator: Collator, batch, number: int) -> str:
    columns = batch.words[number]
    return collator.tokenizer.decode(batch.ids[batch.seg_rows[number], columns[columns >= 0]]).strip()


def test_masks_come_clip_by_clip_object_by_object_frame_by_frame(collator):
    one, two = clip(TEXTS[:2], 3, "a"), clip(TEXTS[2:], 1, "b")
    batch = collator.batch([one, two])
    assert batch.names == ("a", "b")
    assert batch.object_of.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert batch.frame_of.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert batch.clip_of.tolist() == [0, 0, 0, 1] and batch.seg_rows.tolist() == [0, 0, 1]
    assert batch.targets.shape == (7, SIDE, SIDE) and batch.foreground.shape == (4, SIDE, SIDE)
    assert [words_of(collator, batch, n) for n in range(3)] == list(TEXTS)
    assert collator.tokenizer.decode(batch.ids[batch.seg_rows, batch.seg_columns]) == "[SEG]" * 3


def test_targets_keep_their_place_when_resized(collator):
    masks = np.zeros((1, 1, 40, 80), bool)
    masks[0, 0, :20, 40:] = True
    frame = np.zeros((40, 80, 3), np.uint8)
    changes = {"masks": masks, "foreground": masks[0], "shown": (frame,), "frames": (frame,)}
    batch = collator.batch([clip(TEXTS[:1], 1, **changes)])
    assert batch.targets[0, : SIDE // 2, SIDE // 2 :].all() and batch.targets.sum() == SIDE * SIDE // 4


def test_identity_names_an_object_wherever_it_comes_up(collator):
    same = clip(name="v", targets=(("1",), ("2", "1"), ("1",)))
    here, there = collator.batch([same, clip(name="w")]), collator.batch([clip(name="v", targets=(("1", "2"),) * 3)])
    objects = here.identity.view(-1, 2)[:, 0].tolist()
    assert objects[0] == objects[2] and len(set(objects)) == 5 and min(objects) >= 0
    assert (here.identity.view(-1, 2)[:, 0] == here.identity.view(-1, 2)[:, 1]).all(), "in all frames the same"
    assert set(there.identity.tolist()) == {objects[1]}, "and in another batch"


def test_an_object_is_the_same_in_every_set_that_shows_its_scene(collator):
    """Or it would be held against itself in the contrast."""
    one, other = clip(name="refcoco/p", scene="p.jpg"), clip(name="refcoco+/p", scene="p.jpg")
    batch = collator.batch([one, other, clip(name="refcoco/q", scene="q.jpg")])
    first, second, third = batch.identity.view(3, -1).tolist()
    assert first == second and not set(first) & set(third)


def test_seeds_belong_to_a_visit_and_not_to_the_batch(collator):
    one, two = clip(seed=3, name="a"), clip(seed=4, name="b")
    together, alone = collator.batch([two, one]), collator.batch([one])
    assert together.seeds[6:].tolist() == alone.seeds.tolist()
    assert together.frame_seeds[2:].tolist() == alone.frame_seeds.tolist()
    everything = [*together.seeds.tolist(), *together.frame_seeds.tolist()]
    assert len(set(everything)) == 12 + 4 and min(everything) >= 0


def test_what_cannot_be_told_is_handed_on_and_nothing_is_a_filler(collator):
    bad = BadClip("x", "broken")
    named = clip(dialogues=((Turn(QUESTIONS[0], ANSWERS[0], f"the {PLACEHOLDER}"),),), targets=(("1",),), name="y")
    batch, dropped = collator([bad, named, clip(name="z")])
    assert batch.names == ("z",) and dropped[0] is bad and dropped[1].name == "y"
    assert PLACEHOLDER in dropped[1].reason
    filler, dropped = collator([bad])
    assert filler.names == () and dropped == [bad] and len(filler.ids) == 1
    assert (filler.labels == IGNORE).all() and filler.ids.numel()
    sizes = {name: len(value) for name, value in vars(filler).items() if isinstance(value, torch.Tensor)}
    assert {name for name, size in sizes.items() if size} == {"ids", "positions", "labels", "attention"}
    assert filler.sam_pixels.shape == (0, 3, SIDE, SIDE) and filler.mllm_pixels.shape == (0, 3, 16, 16)
    assert filler.to("cpu").names == ()


def test_more_or_fewer_seg_than_objects_are_refused(collator):
    for targets in ((("1",),), (("1",),) * 4):
        batch, (bad,) = collator([clip(targets=targets)])
        assert "3 [SEG] for" in bad.reason and batch.names == ()


def test_a_conversation_without_masks_has_nothing_to_segment(collator):
    turns = (Turn("What is it?", "A dog."), Turn("And that?", "A cat."))
    batch = collator.batch([talk(*turns, name="t"), clip(TEXTS[:1], 2)])
    assert batch.clip_of.tolist() == [1, 1] and batch.seg_rows.tolist() == [1] and len(batch.targets) == 2
    row = batch.labels[0]
    assert collator.tokenizer.decode(row[row >= 0]) == "A dog.<|im_end|>A cat.<|im_end|>"
    alone = collator.batch([talk(*turns, shown=())])
    assert len(alone.seen) == len(alone.mllm_pixels) == len(alone.sam_pixels) == alone.words.numel() == 0
    assert collator.tokenizer.decode(alone.ids[0]).startswith("<|im_start|>user\nWhat is it?<|im_end|>")


def test_placeholders_see_the_positions_of_their_pictures_in_order(collator):
    batch = collator.batch([clip(TEXTS[:1], 2), clip(TEXTS[:1], 3)])
    places = batch.ids == collator.tokenizer.convert_tokens_to_ids(PLACEHOLDER)
    assert batch.seen.tolist() == list(range(5 * 16)) and int(places.sum()) == 5 * 16


def test_a_picture_is_shown_in_tiles_and_a_frame_as_it_is(collator, tokenizer):
    tiled = replace(collator, tiles=4)
    still, video = clip(TEXTS[:1], 1, still=True), clip(TEXTS[:1], 1)
    assert len(collator.batch([still]).mllm_pixels) == len(tiled.batch([video]).mllm_pixels) == 1
    batch = tiled.batch([still])
    assert len(batch.mllm_pixels) == 2 + 1, "20 × 40 pixels: two tiles side by side, and the whole of it"
    text = tokenizer.decode(batch.ids[0])
    assert text.count("<img>") == 1 and text.count(PLACEHOLDER) == 3 * 16 and len(batch.seen) == 3 * 16


@pytest.mark.parametrize("tiles", [1, 4])
def test_a_region_is_pointed_at_by_the_positions_it_covers(collator, tokenizer, tiles):
    upper_left, dot = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
    upper_left[:10, :20] = True
    dot[19, 39] = True
    turn = Turn("There are region1<vp></vp>, region2<vp></vp>.\nWhat is it?", "A dog.")
    batch = replace(collator, tiles=tiles).batch([talk(turn, regions=(upper_left, dot))])
    parts = len(batch.mllm_pixels)
    assert parts == (3 if tiles > 1 else 1)
    whole = (parts - 1) * 16
    assert batch.seen[: parts * 16].tolist() == list(range(parts * 16))
    assert (batch.seen[parts * 16 :] - whole).tolist() == [0, 1, 4, 5, 15], "of the whole picture, row by row"
    said = tokenizer.decode(batch.ids[0])
    assert f"region1<vp>{PLACEHOLDER * 4}</vp>, region2<vp>{PLACEHOLDER}</vp>.\nWhat is it?" in said


def test_regions_that_fit_no_question_or_nothing_are_refused(collator):
    full = np.ones((20, 40), bool)
    turn = Turn("What is <vp></vp>?", "A dog.")
    for regions, what in (((), "regions"), ((full, full), "regions"), ((full & False,), "empty region")):
        _, (bad,) = collator([talk(turn, regions=regions)])
        assert what in bad.reason


def test_a_row_that_is_too_long_loses_its_last_objects_and_counts_them(collator):
    whole = collator.batch([clip()])
    lengths = [int(one) for one in whole.seg_columns]
    for kept, most in ((2, lengths[2]), (3, lengths[2] + 1), (1, lengths[0] + 1)):
        batch = replace(collator, max_tokens=most).batch([clip()])
        assert batch.seg_columns.tolist() == lengths[:kept] and batch.left_out == 3 - kept
        assert batch.ids.shape[1] <= most and batch.targets.equal(whole.targets[: 2 * kept])
        assert batch.seeds.equal(whole.seeds[: 2 * kept]) and batch.identity.equal(whole.identity[: 2 * kept])
    assert whole.left_out == 0
    shorter = replace(collator, max_tokens=lengths[1]).batch([clip()])
    assert [words_of(collator, shorter, n) for n in range(2)] == [TEXTS[0], TEXTS[2]], "a shorter one may fit"
    assert shorter.targets.equal(torch.cat([whole.targets[:2], whole.targets[4:]]))
    _, (bad,) = replace(collator, max_tokens=lengths[0])([clip()])
    assert "max_tokens" in bad.reason and bad.name == "c"


def test_an_answer_is_cut_behind_the_last_seg_that_fits(collator, tokenizer):
    """Phrases of an answer belong to their own [SEG], and one that is cut off takes its object with it."""
    answer = "<p> a dog </p> [SEG] and <p> a cat </p> [SEG] <p> a dog and a cat </p> [SEG]."
    told = clip(still=True, dialogues=((Turn("what is it", answer),),))
    whole = collator.batch([told])
    assert [words_of(collator, whole, n) for n in range(3)] == ["a dog", "a cat", "a dog and a cat"]
    most = int(whole.seg_columns[1]) + 3
    cut = replace(collator, max_tokens=most).batch([told])
    assert cut.seg_columns.tolist() == whole.seg_columns[:2].tolist() and cut.left_out == 1
    assert cut.ids.shape[1] == most and cut.labels[0, -1] == whole.labels[0, most - 1] != IGNORE


def test_rounds_of_a_talk_are_cut_from_behind(collator):
    turns = [Turn("what is it", "a dog and a cat")] * 6
    most = 60
    batch = replace(collator, max_tokens=most).batch([talk(*turns)])
    whole = collator.batch([talk(*turns)])
    assert batch.ids.shape[1] == most < whole.ids.shape[1] and batch.ids.equal(whole.ids[:, :most])
    assert (batch.labels >= 0).any()


def test_pixels_are_resized_and_normalised():
    white = np.full((10, 30, 3), 255, np.uint8)
    pixels = to_pixels([white, white[:5]], (8, 8))
    assert pixels.shape == (2, 3, 8, 8)
    assert pixels[0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229, rel=1e-5)


def test_other_families_put_no_blank_between_picture_and_question(tokenizer):
    tokenizer = build_tokenizer(TEXTS, 600, QWEN_VL)
    assert INTERNVL.separator != QWEN_VL.separator
    batch = Collator(tokenizer, (16, 16), 4, SIDE, QWEN_VL).batch([clip(TEXTS[:1], 2)])
    assert "<|vision_end|><|vision_start|>" in tokenizer.decode(batch.ids[0])
    assert "<|vision_end|>Please segment" in tokenizer.decode(batch.ids[0])
