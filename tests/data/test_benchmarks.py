"""Writer, disk, reader: every layout gives back exactly the masks that the renderer drew."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from salmacli.data import rle
from salmacli.data.benchmarks import DEFAULT_SPLITS, open_benchmark
from salmacli.data.frames import read_frame
from salmacli.data.synthetic.files import FOLDERS, MEVIS_SPLITS
from salmacli.data.synthetic.make import open_synthetic
from salmacli.data.synthetic.render import render
from salmacli.data.synthetic.video import SPLITS, scene_of
from salmacli.data.synthetic.wording import MOTION_WORDS
from salmacli.errors import DataError

SEED = 3


def drawn(name: str) -> np.ndarray:
    """(N, T, H, W) masks of a video, drawn anew."""
    split = next(split for split in SPLITS if name.startswith(split.replace("_", "")))
    return render(scene_of(SEED, split, int(name[-4:]))[0]).masks


def decoded(truth) -> np.ndarray:
    return np.stack([rle.decode(mask) for mask in truth])


@pytest.mark.parametrize("split", list(MEVIS_SPLITS.values()))
def test_mevis(synthetic, split):
    benchmark = open_benchmark("mevis", synthetic / "mevis", split)
    assert benchmark.synthetic
    seen = 0
    for video in benchmark.videos:
        masks = drawn(video.name)
        first = None
        for expression in video.expressions:
            truth = decoded(benchmark.truth(video, expression))
            numbers = [int(key) for key in expression.targets]
            # Keys run through the split: the video's first is found by trying, once.
            if numbers and first is None:
                tries = range(min(numbers) - len(masks) + 1, min(numbers) + 1)
                first = next(n for n in tries if _same(masks, numbers, n, truth))
            expected = masks[[n - first for n in numbers]].any(axis=0) if numbers else np.zeros_like(truth)
            assert np.array_equal(truth, expected)
            assert expression.kind == ("referring" if numbers else "no-target")
            seen += len(numbers)
        assert read_frame(benchmark.frame_path(video, video.frames[-1])).shape == (120, 160, 3)
    assert seen > 10


def _same(masks, numbers, first, truth):
    indices = [n - first for n in numbers]
    return max(indices) < len(masks) and np.array_equal(masks[indices].any(axis=0), truth)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_revos(synthetic, split):
    benchmark = open_benchmark("revos", synthetic / "revos", split)
    kinds = set()
    for video in benchmark.videos:
        masks = drawn(video.name)
        for expression in video.expressions:
            truth = decoded(benchmark.truth(video, expression))
            kinds.add(expression.kind)
            assert (expression.kind == "no-target") == (not expression.targets)
            if len(expression.targets) == 1:
                assert any(np.array_equal(truth, mask) for mask in masks)
            assert expression.text.endswith("?") == (expression.kind == "reasoning")
    assert {"referring", "reasoning"} <= kinds


def test_davis_by_pickle_and_by_pngs_is_the_same(synthetic, tmp_path):
    by_pickle = open_benchmark("davis", synthetic / "davis17")
    shutil.copytree(synthetic / "davis17", tmp_path / "davis17")
    (tmp_path / "davis17" / "valid" / "mask_dict.pkl").unlink()
    by_png = open_benchmark("davis", tmp_path / "davis17")
    assert len(by_pickle.videos) == len(by_png.videos) > 0
    # The order of the pickle's counter matters only where ids sort differently as strings than as numbers.
    assert any(len(video.expressions) > 10 for video in by_pickle.videos)
    for video, same in zip(by_pickle.videos, by_png.videos, strict=True):
        masks = drawn(video.name)
        for expression, twin in zip(video.expressions, same.expressions, strict=True):
            assert (expression.id, expression.text) == (twin.id, twin.text)
            truth = by_pickle.truth(video, expression)
            assert truth == by_png.truth(same, twin)
            assert any(np.array_equal(decoded(truth), mask) for mask in masks)
            assert int(twin.targets[0]) == int(expression.id) // 4 + 1


def test_refytvos_trains_with_masks_and_keeps_those_of_valid_back(synthetic):
    train = open_benchmark("refytvos", synthetic / "rvos", "train")
    for video in train.videos:
        masks = drawn(video.name)
        for expression in video.expressions:
            truth = decoded(train.truth(video, expression))
            assert any(np.array_equal(truth, mask) for mask in masks)
    valid = open_benchmark("refytvos", synthetic / "rvos")
    for video in valid.videos:
        for expression in video.expressions:
            assert valid.objects(video, expression) is None
            assert valid.truth(video, expression) is None
            assert valid.truth_bits(video, expression) is None
        assert valid.labels_path(video, video.frames[0]) is None


def test_refytvos_by_official_pngs(synthetic, tmp_path):
    video = open_benchmark("refytvos", synthetic / "rvos", "train").videos[0]
    meta = tmp_path / "meta_expressions" / "train" / "meta_expressions.json"
    meta.parent.mkdir(parents=True)
    entry = {"expressions": {"0": {"exp": "it", "obj_id": "2"}}, "frames": list(video.frames)}
    meta.write_text(json.dumps({"videos": {video.name: entry}}))
    masks = drawn(video.name)
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / "train" / kind / video.name).mkdir(parents=True)
    for index, frame in enumerate(video.frames):
        Image.fromarray(np.zeros((120, 160, 3), dtype=np.uint8)).save(
            tmp_path / "train" / "JPEGImages" / video.name / f"{frame}.jpg"
        )
        plane = Image.fromarray((masks[0, index] + 2 * masks[1, index]).astype(np.uint8), mode="P")
        plane.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        plane.save(tmp_path / "train" / "Annotations" / video.name / f"{frame}.png")
    benchmark = open_benchmark("refytvos", tmp_path, "train")
    truth = benchmark.truth(benchmark.videos[0], benchmark.videos[0].expressions[0])
    assert np.array_equal(decoded(truth), masks[1])


def test_refytvos_valid_leaves_out_the_test_videos(synthetic, tmp_path):
    shutil.copytree(synthetic / "rvos", tmp_path / "rvos")
    names = [video.name for video in open_benchmark("refytvos", tmp_path / "rvos").videos]
    test = tmp_path / "rvos" / "meta_expressions" / "test" / "meta_expressions.json"
    test.parent.mkdir(parents=True)
    test.write_text(json.dumps({"videos": {names[0]: {}}}))
    assert [video.name for video in open_benchmark("refytvos", tmp_path / "rvos").videos] == names[1:]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("refcoco", "train"),
        ("refcoco", "val"),
        ("refcoco", "testA"),
        ("refcoco+", "train"),
        ("refcocog", "test"),
        ("grefcoco", "train"),
        ("grefcoco", "val"),
        ("grefcoco", "testA"),
    ],
)
def test_refcoco(synthetic, name, split):
    benchmark = open_benchmark(name, synthetic / "refcoco", split)
    frames = {}
    for one in SPLITS:
        for path in sorted((synthetic / "mevis" / MEVIS_SPLITS[one] / "JPEGImages").rglob("*.jpg")):
            frames[path.read_bytes()] = (path.parent.name, int(path.stem))
    for video in benchmark.videos:
        assert len(video.frames) == 1
        source, frame = frames[benchmark.frame_path(video, video.frames[0]).read_bytes()]
        masks = drawn(source)[:, frame]
        for expression in video.expressions:
            (truth,) = benchmark.truth(video, expression)
            objects = benchmark.objects(video, expression)
            assert len(objects) == len(expression.targets)
            assert all(any(np.array_equal(rle.decode(one), mask) for mask in masks) for (one,) in objects)
            united = np.any([rle.decode(one) for (one,) in objects], axis=0)
            assert np.array_equal(rle.decode(truth), united if objects else np.zeros((120, 160)))
            assert name != "refcoco+" or expression.tags["category"] == "attribute"
            assert expression.kind == ("referring" if objects else "no-target")
            assert name == "grefcoco" or len(objects) == 1
            # One picture does not show motion, whether of one thing or of several.
            assert not any(said in expression.text for words in MOTION_WORDS.values() for said in words)
    assert benchmark.videos


def test_grefcoco_has_one_several_and_no_target(synthetic):
    numbers = set()
    for split in ("train", "val", "testA"):
        videos = open_benchmark("grefcoco", synthetic / "refcoco", split).videos
        numbers |= {min(len(one.targets), 2) for video in videos for one in video.expressions}
    assert numbers == {0, 1, 2}


LAYOUTS = [("mevis", "valid_u"), ("revos", "valid"), ("davis", "valid"), ("refytvos", "train")]
LAYOUTS += [("refcoco", "train"), ("grefcoco", "train"), ("own", "train")]


@pytest.mark.parametrize(("name", "split"), LAYOUTS)
def test_truth_as_bits_is_the_truth(synthetic, name, split):
    benchmark = open_synthetic(name, synthetic, split)
    for video in benchmark.videos:
        for expression in video.expressions:
            bits = benchmark.truth_bits(video, expression)
            truth = decoded(benchmark.truth(video, expression))
            assert np.array_equal(np.stack([one.to_mask() for one in bits]), truth)


def test_overlapping_objects_are_united_not_added(synthetic):
    benchmark = open_benchmark("mevis", synthetic / "mevis")
    video = benchmark.videos[0]
    left, right = np.zeros((2, 120, 160), dtype=bool)
    left[:, :100], right[:, 50:] = True, True
    tracks = [[rle.encode(left)] * 12, [None] + [rle.encode(right)] * 11]
    benchmark.objects = lambda *_: tracks
    for masks in (
        decoded(benchmark.truth(video, video.expressions[0])),
        [one.to_mask() for one in benchmark.truth_bits(video, video.expressions[0])],
    ):
        assert np.array_equal(masks[0], left)
        assert masks[1].all()


def test_testb_is_what_has_a_distractor(synthetic):
    benchmark = open_benchmark("refcoco", synthetic / "refcoco", "testB")
    assert all(one.tags["distractor"] for video in benchmark.videos for one in video.expressions)


def test_own(synthetic):
    benchmark = open_benchmark("own", synthetic / "own")
    for video in benchmark.videos:
        masks = drawn(video.name.split("-")[1])
        for expression in video.expressions:
            (truth,) = benchmark.truth(video, expression)
            assert any(np.array_equal(rle.decode(truth), mask) for mask in masks.reshape(-1, 120, 160))


@pytest.mark.parametrize("name", list(DEFAULT_SPLITS))
def test_every_benchmark_opens_from_the_root_too(synthetic, name):
    benchmark = open_synthetic(name, synthetic)
    assert (benchmark.name, benchmark.split, benchmark.synthetic) == (name, DEFAULT_SPLITS[name], True)
    video = benchmark.videos[0]
    assert list(video.frames) == sorted(video.frames)
    assert benchmark.frame_path(video, video.frames[0]).is_file()
    frames = benchmark.frames(video)
    assert (
        len(frames) == len(video.frames)
        and frames.still == (name == "own" or "refcoco" in name)
        and frames.size == benchmark.size(video)
    )
    assert np.array_equal(frames[-1], read_frame(benchmark.frame_path(video, video.frames[-1])))


def test_unknown_names_and_folders_are_refused(synthetic, tmp_path):
    with pytest.raises(DataError, match="no benchmark 'mevs'"):
        open_benchmark("mevs", synthetic)
    with pytest.raises(DataError, match="no benchmark 'mevs'"):
        open_synthetic("mevs", synthetic)
    with pytest.raises(DataError, match="no split 'valid_x'"):
        open_benchmark("mevis", synthetic / "mevis", "valid_x")
    for name in DEFAULT_SPLITS:
        with pytest.raises(DataError, match="nowhere"):
            open_benchmark(name, tmp_path / "nowhere")
        with pytest.raises(DataError):
            open_benchmark(name, tmp_path)
    assert set(FOLDERS) == set(DEFAULT_SPLITS)
