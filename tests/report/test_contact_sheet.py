from __future__ import annotations

import numpy as np
from PIL import Image

from salmacli.data import rle
from salmacli.data.benchmarks import Benchmark
from salmacli.data.records import Expression, Video
from salmacli.report.contact_sheet import contact_sheet


class OneVideo(Benchmark):
    public = True

    def frame_path(self, video, frame):
        return self.root / f"{frame}.png"

    def truth(self, video, expression):
        mask = np.zeros((30, 40), dtype=bool)
        mask[8:20, 10:25] = True
        return [rle.encode(mask), rle.empty(30, 40)] if self.public else None


def sheet_of(folder, public=True):
    for frame in ("a", "b"):
        Image.fromarray(np.full((30, 40, 3), 40, dtype=np.uint8)).save(folder / f"{frame}.png")
    expressions = (
        Expression("0", "the box", ("1",)),
        Expression("1", "that box", ("1",), tags={"distractor": True}),
    )
    benchmark = OneVideo("mevis", folder, "train", [Video("v", ("a", "b"), expressions)])
    benchmark.public = public
    return np.asarray(contact_sheet(benchmark))


def test_outlines_of_both_sentences_show_and_the_mask_itself_stays_free(tmp_path):
    sheet = sheet_of(tmp_path)
    frames = sheet[80:]
    for colour in ((255, 255, 255), (255, 0, 255)):
        assert (frames == colour).all(axis=-1).any()
    assert (frames[:, :238] == 40).all(axis=-1).any()
    second = frames[:, 252:470]
    assert not (second == (255, 0, 255)).all(axis=-1).any()


def test_without_truth_there_are_no_outlines(tmp_path):
    assert not (sheet_of(tmp_path, public=False)[80:] == (255, 0, 255)).all(axis=-1).any()
