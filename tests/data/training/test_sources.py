from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from salmacli.data.records import Round, Talk
from salmacli.data.training.sources import Referred, Sampling, Told
from salmacli.errors import DataError
from tests.data.training.conftest import CHAT, GCG, REGION, TEXTS, Rows, Talks

SAMPLING = Sampling(clip_frames=4, decoded_frames=2, expressions=2)


def drawn(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def asked(clip) -> list[str]:
    return [turn.expression for turns in clip.dialogues for turn in turns]


def test_masks_belong_to_their_frames_and_expressions(rows):
    samples = Referred(rows, SAMPLING)
    for seed in range(8):
        clip = samples.clip(1, "rows/v1", drawn(seed))
        assert len(set(asked(clip))) == 2, "drawn with replacement"
        for o, text in enumerate(asked(clip)):
            row = TEXTS.index(text)
            assert clip.targets[o] == (str(row),)
            for d, frame in enumerate(clip.frames):
                assert np.argwhere(clip.masks[o, d]).tolist() == [[row, int(frame[0, 0, 0]) // 10]]
        assert clip.foreground.sum() == 3 * 2, "all three expressions in both frames, once each"
        shown = [int(frame[0, 0, 0]) for frame in clip.shown]
        assert len(shown) == 4 and shown == sorted(shown)
        times = [int(frame[0, 0, 0]) for frame in clip.frames]
        assert times == sorted(set(times)), "in the order of time, no frame twice"


def test_expressions_are_all_different_while_there_are_enough_and_never_repeated(rows):
    for most, count in ((1, 1), (3, 3), (5, 3)):
        clip = Referred(rows, Sampling(4, 2, most)).clip(0, "v0", drawn(0))
        assert len(asked(clip)) == len(set(asked(clip))) == count


def test_which_of_several_sentences_is_taken_is_drawn_per_visit(rows):
    """In RefCOCO the sentences of an object are expressions with the same target."""
    samples = Referred(rows, Sampling(4, 2, 1))
    first = Counter(asked(samples.clip(0, "v0", drawn(seed)))[0] for seed in range(60))
    assert set(first) == set(TEXTS) and max(first.values()) < 40


def test_questions_fit_what_is_asked(rows):
    samples = Referred(rows, Sampling(4, 2, 3))
    for seed in range(10):
        for (turn,) in samples.clip(0, "v0", drawn(seed)).dialogues:
            assert ("mask" in turn.question) or turn.expression is None or not turn.expression.endswith("?")
            assert "[SEG]" in turn.answer and "{expression}" in turn.question


def test_a_picture_is_shown_once(tmp_path):
    benchmark = Rows(tmp_path, frames=1)
    benchmark.still = True
    clip = Referred(benchmark, SAMPLING).clip(0, "v0", drawn(0))
    assert clip.still and len(clip.shown) == len(clip.frames) == 1


def test_several_targets_are_united_and_none_is_an_empty_mask(tmp_path):
    from salmacli.data.records import Expression, Video

    benchmark = Rows(tmp_path)
    frames = benchmark.videos[0].frames
    said = (Expression("0", "both", ("2", "1")), Expression("1", "neither", (), "no-target"))
    benchmark.videos = (Video("v0", frames, said),)
    clip = Referred(benchmark, SAMPLING).clip(0, "v0", drawn(0))
    sums = dict(zip(asked(clip), clip.masks.sum((1, 2, 3)), strict=True))
    assert sums == {"both": 2 * 2, "neither": 0}
    assert sorted(clip.targets) == [(), ("1", "2")] and clip.masks.dtype == bool


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda track: track[:-1], "5 masks for 6 frames"),
        (lambda track: [{"size": [4, 4], "counts": [16]}] * 6, r"its mask is \(4, 4\) but the frame is \(8, 10\)"),
        (lambda track: [{"size": [8, 10], "counts": "0"}] * 6, "v0, object 0, frame"),
    ],
)
def test_masks_that_do_not_fit_are_named(rows, monkeypatch, spoil, message):
    whole = rows.objects
    monkeypatch.setattr(rows, "objects", lambda *asked: [spoil(track) for track in whole(*asked)])
    with pytest.raises(DataError, match=message):
        Referred(rows, SAMPLING).clip(0, "rows/v0", drawn(0))


def test_a_scene_is_the_same_wherever_it_is_listed(tmp_path):
    """A picture of COCO in all sets that speak of it, a video in all members that have its folder."""

    def scene(place: str, name: str, video: int = 0) -> str:
        return Referred(Rows(tmp_path / place, name=name), SAMPLING).clip(video, "", drawn(0)).scene

    coco = {scene(place, name) for place in ("a", "b") for name in ("refcoco", "refcoco+", "refcocog", "grefcoco")}
    assert len(coco) == 1
    assert scene("a", "mevis") == scene("a", "mevis") != scene("a", "mevis", 1)
    assert len({scene("a", "mevis"), scene("b", "mevis"), scene("a", "revos"), *coco}) == 4
    talks = Told(Talks([GCG, GCG]), SAMPLING)
    assert talks.clip(0, "x", drawn(0)).scene == talks.clip(0, "y", drawn(1)).scene != talks.clip(1, "", drawn(0)).scene


def test_a_split_without_masks_is_refused_at_once(rows):
    rows.masks_path = None
    with pytest.raises(DataError, match="no public masks"):
        Referred(rows, SAMPLING)


def test_a_talk_gives_every_seg_its_mask():
    clip = Told(Talks([GCG]), SAMPLING).clip(0, "talks/0", drawn(0))
    assert clip.targets == (("1",), ("3",)) and clip.masks.shape == (2, 1, 8, 10)
    assert clip.masks[0, 0, 1].all() and clip.masks[1, 0, 3].all() and clip.masks.sum() == 20
    assert len(clip.shown) == len(clip.frames) == 1 and clip.still
    assert {Told(Talks([GCG]), SAMPLING).clip(0, "", drawn(n)).dialogues[0][0].question for n in range(20)} == {
        "Describe it.",
        "What is there?",
    }


def test_a_talk_without_masks_segments_nothing():
    clip = Told(Talks([CHAT], frames=9, still=False), SAMPLING).clip(0, "talks/0", drawn(0))
    assert [turn.question for turn in clip.dialogues[0]] == ["What is it?", "Of what?", "Sure?"]
    assert len(clip.shown) == 4 and not clip.frames and clip.masks.shape[:2] == (0, 0)
    clip = Told(Talks([CHAT], frames=None), SAMPLING).clip(0, "talks/0", drawn(0))
    assert not clip.shown and not clip.targets


def test_a_region_is_a_mask_of_the_picture():
    clip = Told(Talks([REGION]), SAMPLING).clip(0, "talks/0", drawn(0))
    assert len(clip.regions) == 1 and clip.regions[0][2].all() and clip.regions[0].sum() == 10
    assert not clip.targets and not clip.frames


def test_a_seg_without_a_mask_is_refused():
    talk = Talk("gcg/7", (Round("What?", "<p> this </p> [SEG]"),))
    with pytest.raises(DataError, match=r"gcg/7: 1 times \[SEG\] for 0 masks"):
        Told(Talks([talk]), SAMPLING).clip(0, "talks/0", drawn(0))
