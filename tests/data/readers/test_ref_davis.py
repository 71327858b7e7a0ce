"""Ref-DAVIS17 by its PNGs: each is read once, and refused where it is wrong."""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from salmacli.data import rle
from salmacli.data.benchmarks import open_benchmark
from salmacli.data.label_pictures import read_labels
from salmacli.data.readers import ref_davis
from salmacli.errors import DataError


@pytest.fixture
def davis(synthetic, tmp_path):
    """Without the pickle, so that the PNGs are the truth."""
    shutil.copytree(synthetic / "davis17", tmp_path / "davis17")
    (tmp_path / "davis17/valid/mask_dict.pkl").unlink()
    return tmp_path / "davis17"


def decoded(truth) -> np.ndarray:
    return np.stack([rle.decode(mask) for mask in truth])


def test_pngs_give_the_same_bits_and_each_is_read_once(davis, monkeypatch):
    read = Counter()
    monkeypatch.setattr(ref_davis, "read_labels", lambda path: read.update([path]) or read_labels(path))
    benchmark = open_benchmark("davis", davis)
    for video in benchmark.videos:
        for expression in video.expressions:
            truth = decoded(benchmark.truth(video, expression))
            bits = benchmark.truth_bits(video, expression)
            assert np.array_equal(np.stack([one.to_mask() for one in bits]), truth)
            assert truth.any()
    assert read == dict.fromkeys(benchmark.masks_path.rglob("*.png"), 1)


def test_threads_do_not_take_each_others_pngs_away(davis, monkeypatch):
    benchmark = open_benchmark("davis", davis)
    first, second = benchmark.videos[:2]
    expected = {video.name: benchmark.truth(video, video.expressions[0]) for video in (first, second)}
    read = Counter()
    monkeypatch.setattr(ref_davis, "read_labels", lambda path: read.update([path]) or read_labels(path))
    both = Barrier(2)

    def ask(video):
        for _ in range(5):
            both.wait(timeout=10)
            assert benchmark.truth(video, video.expressions[0]) == expected[video.name]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, (first, second)))
    assert set(read.values()) == {1} and len(read) == 24


def test_a_set_of_pngs_can_go_to_another_process(davis):
    benchmark = open_benchmark("davis", davis)
    video = benchmark.videos[0]
    truth = benchmark.truth(video, video.expressions[0])
    assert pickle.loads(pickle.dumps(benchmark)).truth(video, video.expressions[0]) == truth


def test_official_pngs_are_found_beside_the_pickle(synthetic, tmp_path):
    benchmark = open_benchmark("davis", synthetic / "davis17")
    video = benchmark.videos[0]
    path = benchmark.labels_path(video, video.frames[0])
    assert benchmark.masks_path.name == "mask_dict.pkl"
    assert path == synthetic / "davis17" / "valid" / "Annotations" / video.name / "00000.png"
    truth = decoded(benchmark.truth(video, video.expressions[0]))
    assert np.array_equal(read_labels(path) == 1, truth[0])
    shutil.copytree(synthetic / "davis17", tmp_path / "davis17")
    shutil.rmtree(tmp_path / "davis17" / "valid" / "Annotations")
    assert open_benchmark("davis", tmp_path / "davis17").labels_path(video, video.frames[0]) is None


def _colours(path):
    Image.new("RGB", (160, 120)).save(path)


def _cut(path):
    path.write_bytes(path.read_bytes()[:60])


PNGS = {
    "colours": (_colours, "picture of mode RGB, not of object numbers"),
    "16 bits": (lambda p: Image.fromarray(np.zeros((120, 160), np.uint16)).save(p), "picture of mode I"),
    "cut off": (_cut, "cannot be read"),
    "missing": (lambda p: p.unlink(), "does not exist"),
    "another size": (
        lambda p: Image.new("L", (120, 160)).save(p),
        r"size \(160, 120\) where the frames are \(120, 160\)",
    ),
}


@pytest.mark.parametrize("case", list(PNGS))
def test_pngs_that_are_wrong(davis, case):
    benchmark = open_benchmark("davis", davis)
    video = benchmark.videos[0]
    path = benchmark.labels_path(video, video.frames[3])
    PNGS[case][0](path)
    for truth in (benchmark.objects, benchmark.truth, benchmark.truth_bits):
        with pytest.raises(DataError, match=PNGS[case][1]) as caught:
            truth(video, video.expressions[0])
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("number", [0, 255, 300])
def test_object_numbers_that_no_png_has(davis, change, number):
    meta = davis / "meta_expressions/valid/meta_expressions.json"

    def renumber(content):
        for video in content["videos"].values():
            video["expressions"]["0"]["obj_id"] = str(number)

    change(meta, renumber)
    with pytest.raises(DataError, match=rf"expression 0: PNGs number objects from 1 to 254, not {number}"):
        open_benchmark("davis", davis)
