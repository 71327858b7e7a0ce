from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from salmacli.data import rle
from salmacli.data.mixing import BadClip, Clip, Source, TrainingMix, evenly
from salmacli.data.records import Expression, Video
from salmacli.engine.trainer import VisitOrder
from salmacli.errors import DataError


class Memory:
    """A benchmark whose frames are files and whose masks are made here."""

    name, split, root, synthetic = "memory", "train", Path("memory"), True

    def __init__(self, folder: Path, videos: int = 3, frames: int = 6, size: tuple[int, int] = (8, 10)) -> None:
        from PIL import Image

        self.folder, self.size = folder, size
        texts = ("the red one", "the blue one", "nothing")
        expressions = tuple(Expression(str(n), text, (str(n),)) for n, text in enumerate(texts))
        names = tuple(f"{n:05d}" for n in range(frames))
        self.videos = tuple(Video(f"v{n}", names, expressions) for n in range(videos))
        for video in self.videos:
            for n, frame in enumerate(names):
                path = self.frame_path(video, frame)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((*size, 3), 10 * n, np.uint8)).save(path)

    def frame_path(self, video: Video, frame: str) -> Path:
        return self.folder / video.name / f"{frame}.png"

    def truth(self, video: Video, expression: Expression) -> list[dict]:
        masks = [np.zeros(self.size, bool) for _ in video.frames]
        for n, mask in enumerate(masks):
            mask[int(expression.id), n] = True  # row: which expression; column: which frame
        return [rle.encode(mask) for mask in masks]


def mix(benchmark: Memory, repeats: int = 1, **options: int) -> TrainingMix:
    settings = {"seed": 0, "clip_frames": 4, "decoded_frames": 2, "expressions": 2, **options}
    return TrainingMix([Source(benchmark, repeats)], **settings)


def test_masks_belong_to_their_frames_and_expressions(tmp_path):
    source = mix(Memory(tmp_path))
    for epoch in range(8):
        clip = source[epoch, 1]
        assert isinstance(clip, Clip)
        assert len(set(clip.expressions)) == 2, "drawn with replacement"
        for o, text in enumerate(clip.expressions):
            row = ("the red one", "the blue one", "nothing").index(text)
            for d, frame in enumerate(clip.frames):
                assert np.argwhere(clip.masks[o, d]).tolist() == [[row, int(frame[0, 0, 0]) // 10]]
        assert clip.foreground.sum() == 3 * 2, "all three expressions in both frames, once each"
        shown = [int(frame[0, 0, 0]) for frame in clip.shown]
        assert shown == sorted(shown)


def test_a_visit_is_a_function_of_seed_epoch_and_number(tmp_path):
    benchmark = Memory(tmp_path)
    once, again, later = mix(benchmark)[3, 1], mix(benchmark)[3, 1], mix(benchmark)[4, 1]
    assert once.expressions == again.expressions and np.array_equal(once.masks, again.masks)
    draws = {tuple(mix(benchmark)[epoch, 1].expressions) for epoch in range(12)}
    assert len(draws) > 2 and later is not None
    assert (
        not np.array_equal(mix(benchmark).order(0), mix(Memory(tmp_path), seed=5).order(0)) or len(mix(benchmark)) < 4
    )


def test_repeats_are_exact_over_an_epoch_on_one_and_two_ranks(tmp_path):
    few, many = Memory(tmp_path / "a", 2), Memory(tmp_path / "b", 3)
    source = TrainingMix([Source(few, 4), Source(many, 1)], seed=0, clip_frames=2, decoded_frames=1, expressions=1)
    assert len(source) == 2 * 4 + 3
    for ranks in (1, 2):
        keys = []
        orders = [iter(VisitOrder(source, 1, rank=rank, ranks=ranks, first_pass=0)) for rank in range(ranks)]
        while len(keys) < len(source):
            for order in orders:
                keys += next(order)
        first = [visit for epoch, visit in keys if epoch == 0]
        assert sorted(first) == list(range(11)), "an epoch is a permutation"
        assert Counter(source.visits[visit][0] is few for visit in first) == {True: 8, False: 3}
        assert Counter(source.visits[visit][1].name for visit in first if source.visits[visit][0] is few) == {
            "v0": 4,
            "v1": 4,
        }


def test_order_can_start_anywhere(tmp_path):
    source = mix(Memory(tmp_path))
    order = iter(VisitOrder(source, 2, rank=0, ranks=1, first_pass=0))
    passes = [next(order) for _ in range(7)]
    assert next(iter(VisitOrder(source, 2, rank=0, ranks=1, first_pass=5))) == passes[5]


def test_an_unreadable_frame_is_named_and_not_fatal_here(tmp_path):
    benchmark = Memory(tmp_path, frames=1)
    (tmp_path / "v1" / "00000.png").write_bytes(b"not a picture")
    bad = mix(benchmark)[0, 1]
    assert isinstance(bad, BadClip) and "memory/v1" in bad.name and "00000.png" in bad.reason


def test_an_empty_mix_is_an_error(tmp_path):
    with pytest.raises(DataError, match="empty"):
        mix(Memory(tmp_path, videos=0))


def test_evenly_covers_both_ends_and_repeats_in_short_videos():
    assert evenly(12, 4).tolist() == [0, 4, 7, 11]
    assert evenly(2, 4).tolist() == [0, 0, 1, 1]
    assert evenly(1, 3).tolist() == [0, 0, 0]
