"""What is wrong with a set on disk is told, each kind by its name and all of it counted."""

from __future__ import annotations

import json
import os
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from salmacli.data import rle
from salmacli.data.benchmarks import open_benchmark
from salmacli.data.sets import open_tolerantly
from salmacli.engine.progress import Silent
from salmacli.engine.verify import BLANK, EMPTY, ENTRIES, FEW, KINDS, MASKS, MISSING, NAMES, PICTURES, SIZES, verify


def look(name, root, split="train", quick=False):
    return verify(*open_tolerantly(name, root, split), quick, Silent())


@pytest.mark.parametrize(
    ("name", "folder", "split"),
    [
        ("mevis", "mevis", "valid_u"),
        ("mevis", "mevis", "valid"),
        ("revos", "revos", "valid"),
        ("davis", "davis17", "valid"),
        ("refytvos", "rvos", "train"),
        ("refcoco", "refcoco", "val"),
        ("grefcoco", "refcoco", "val"),
        ("own", "own", "train"),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_a_whole_set_is_whole(small_synthetic, name, folder, split, quick):
    findings, left_out = look(name, small_synthetic / folder, split, quick)
    benchmark = open_benchmark(name, small_synthetic / folder, split)
    assert (findings.faults, findings.first, left_out) == ({}, {}, {})
    assert findings.counts["pictures" if benchmark.still else "videos"] == len(benchmark.videos)
    assert findings.counts["expressions"] == sum(len(video.expressions) for video in benchmark.videos)
    assert findings.counts["frames"] == (0 if benchmark.still else sum(len(v.frames) for v in benchmark.videos))
    assert (findings.counts["masks"] > 0) == benchmark.public


def test_a_mask_that_several_expressions_mean_is_counted_once(small_synthetic):
    benchmark = open_benchmark("mevis", small_synthetic / "mevis", "train")
    masks = json.loads((small_synthetic / "mevis" / "train" / "mask_dict.json").read_text())
    meant = [key for video in benchmark.videos for one in video.expressions for key in one.targets]
    assert len(meant) > len(set(meant))
    findings, _ = look("mevis", small_synthetic / "mevis")
    assert findings.counts["masks"] == sum(mask is not None for key in set(meant) for mask in masks[key])


@pytest.fixture
def mevis(small_synthetic, tmp_path):
    shutil.copytree(small_synthetic / "mevis" / "train", tmp_path / "mevis" / "train", symlinks=False)
    return tmp_path / "mevis"


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def frame(root, number, name):
    """The file of a frame of the n-th video; a copy, as the synthetic layouts link to each other."""
    video = sorted((root / "train" / "JPEGImages").iterdir())[number]
    path = video / f"{name}.jpg"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def test_each_kind_of_fault_is_told_by_its_name_and_counted(mevis):
    names = [path.name for path in sorted((mevis / "train" / "JPEGImages").iterdir())]
    meta, masks = mevis / "train" / "meta_expressions.json", mevis / "train" / "mask_dict.json"

    def spoil_expressions(content):
        content["videos"]["../../etc"] = {}
        for key in list(content["videos"][names[0]]["expressions"])[:2]:
            content["videos"][names[0]]["expressions"][key]["exp"] = ""
        content["videos"][names[0]]["expressions"]["x"] = {"exp": "it", "anno_id": "?"}
        content["videos"][names[1]]["expressions"]["x"] = {"exp": "it", "anno_id": [99999]}
        content["videos"][names[1]]["expressions"]["y"] = {"exp": "that", "anno_id": [99999]}

    change(meta, spoil_expressions)
    benchmark, _ = open_tolerantly("mevis", mevis, "train")
    keys = sorted({key for one in benchmark.videos[2].expressions for key in one.targets})

    def spoil_masks(content):
        other = rle.encode(np.ones((160, 120), dtype=bool))
        content[keys[0]] = [mask and other for mask in content[keys[0]]]
        content[keys[1]][1] = {"size": [120, 160], "counts": "??"}
        content[keys[1]][2] = 5

    change(masks, spoil_masks)
    there = sum(mask is not None for mask in json.loads(masks.read_text())[keys[0]])
    frame(mevis, 3, "00001").unlink()
    frame(mevis, 4, "00000").unlink()
    whole = frame(mevis, 3, "00004").read_bytes()
    frame(mevis, 3, "00004").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((60, 80, 3), dtype=np.uint8)).save(frame(mevis, 3, "00005"))

    findings, _ = look("mevis", mevis)
    assert findings.faults == {NAMES: 1, EMPTY: 2, ENTRIES: 1, MISSING: 2, PICTURES: 1, SIZES: 1 + there, MASKS: 3}
    assert list(findings.faults) != [] and set(findings.first) <= set(KINDS)
    first = {kind: " | ".join(messages) for kind, messages in findings.first.items()}
    assert "'../../etc' is not a plain name" in first[NAMES]
    assert f"video {names[0]}, expression 1: the expression is empty" in first[EMPTY]
    assert "expression x, key anno_id: a list is needed" in first[ENTRIES]
    assert f"{names[3]}/00001.jpg does not exist" in first[MISSING] and f"{names[4]}/00000.jpg" in first[MISSING]
    assert f"{names[3]}/00004.jpg cannot be read" in first[PICTURES]
    assert "frame 00005 of" in first[SIZES] or f"mask {keys[0]}, frame" in first[SIZES]
    assert f"mask {keys[1]}, frame 00001" in first[MASKS] and "no masks under key '99999'" in first[MASKS]
    assert all(len(messages) <= FEW for messages in findings.first.values())

    quick, _ = look("mevis", mevis, quick=True)
    assert quick.faults == {NAMES: 1, EMPTY: 2, ENTRIES: 1, MISSING: 2, SIZES: there, MASKS: 3}


@pytest.mark.parametrize("outside", [[[200, 10, 220, 10, 220, 30]], []])
def test_an_object_that_its_mask_does_not_show(small_synthetic, tmp_path, outside):
    shutil.copytree(small_synthetic / "own", tmp_path / "own")

    def spoil(content):
        content[1]["mask"][0] = outside

    change(tmp_path / "own" / "annotations.json", spoil)
    findings, _ = look("own", tmp_path / "own")
    assert findings.faults == {BLANK: 1}
    assert "mask 1-0: it marks nothing in a picture of 160x120" in findings.first[BLANK][0]


def test_an_object_of_a_video_may_be_absent_from_some_frames_but_not_from_all(mevis):
    benchmark, _ = open_tolerantly("mevis", mevis, "train")
    keys = sorted({key for one in benchmark.videos[2].expressions for key in one.targets})[:2]
    nothing = rle.empty(120, 160)

    def spoil(content):
        content[keys[0]] = [None, *[nothing] * (len(content[keys[0]]) - 1)]
        content[keys[1]][0] = nothing
        assert any(content[keys[1]])

    change(mevis / "train" / "mask_dict.json", spoil)
    findings, _ = look("mevis", mevis)
    assert findings.faults == {BLANK: 1}
    assert f"mask {keys[0]}: it marks nothing in any frame of 160x120" in findings.first[BLANK][0]


def test_what_nothing_is_said_of_may_be_empty(small_synthetic, tmp_path):
    """A foreground, and what expressions without a target name."""
    shutil.copytree(small_synthetic / "revos", tmp_path / "revos")
    nothing = rle.empty(120, 160)
    name = open_benchmark("revos", tmp_path / "revos", "valid").videos[0].name

    def add(content):
        said = {"exp": "a blue horse", "anno_id": ["77777"], "type_id": 2, "obj_id": [], "tp_ids": []}
        content["videos"][name]["expressions"]["x"] = said

    def empty(content):
        content[name]["masks_rle"] = [nothing] * len(content[name]["masks_rle"])

    change(tmp_path / "revos" / "meta_expressions_valid_.json", add)
    change(tmp_path / "revos" / "mask_dict.json", lambda content: content.update({"77777": [nothing] * 12}))
    change(tmp_path / "revos" / "mask_dict_foreground.json", empty)
    findings, _ = look("revos", tmp_path / "revos", "valid")
    assert findings.faults == {}


def test_lengths_of_tracks_and_the_foreground_of_revos(small_synthetic, tmp_path):
    shutil.copytree(small_synthetic / "revos", tmp_path / "revos")
    benchmark = open_benchmark("revos", tmp_path / "revos", "valid")
    key = next(key for one in benchmark.videos[0].expressions for key in one.targets)
    change(tmp_path / "revos" / "mask_dict.json", lambda content: content[key].pop())
    change(
        tmp_path / "revos" / "mask_dict_foreground.json",
        lambda content: content[benchmark.videos[0].name]["masks_rle"].pop(),
    )
    findings, _ = look("revos", tmp_path / "revos", "valid")
    assert set(findings.faults) == {MASKS} and findings.faults[MASKS] >= 2
    told = " | ".join(findings.first[MASKS])
    assert f"mask {key}: 11 masks for 12 frames" in told and "object 0 of the foreground: 11 masks" in told


def test_pictures_each_but_once(tmp_path):
    """The same picture in many talks is decoded once; what is wrong with it is told once, a missing one each time."""
    images = tmp_path / "llava_images"
    images.mkdir()
    Image.fromarray(np.zeros((24, 32, 3), dtype=np.uint8)).save(images / "good.jpg")
    (images / "bad.jpg").write_bytes((images / "good.jpg").read_bytes()[:-100])
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    records = [{"image": f"{name}.jpg", "conversations": turns} for name in ("good", "bad", "bad", "no", "no", "../x")]
    records += [{"conversations": turns}, {"image": "good.jpg", "conversations": []}, 5]
    (tmp_path / "llava_v1_5_mix665k.json").write_text(json.dumps(records))
    findings, _ = look("llava", tmp_path)
    assert findings.faults == {PICTURES: 1, MISSING: 2, NAMES: 1, ENTRIES: 2}
    assert findings.counts == {"talks": 9, "rounds": 7, "with a picture": 5}


def test_masks_of_talks_and_what_is_left_out(tmp_path):
    folder = tmp_path / "images" / "grandf" / "train"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((24, 32, 3), dtype=np.uint8)).save(folder / "a.jpg")
    good, turned = (rle.encode(np.ones(size, dtype=bool)) for size in ((24, 32), (32, 24)))
    records = [
        {
            "file_name": "a.jpg",
            "caption": "a cat",
            "groundings": {"cat": {"token_positives": [2, 5], "rle_masks": [mask]}} if mask else {},
        }
        for mask in (good, turned, {"size": [24, 32], "counts": "0"}, rle.empty(24, 32), None)
    ]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "GranDf_HA_GCG_train.json").write_text(json.dumps(records))
    findings, left_out = look("gcg-grandf", tmp_path)
    assert findings.faults == {SIZES: 1, MASKS: 1, BLANK: 1}
    assert findings.counts["masks"] == 4
    assert left_out == {"no phrase of the caption has a mask": 1}


def film(path):
    """Six frames of noise; an AVI keeps an index, so that a file with a damaged frame can still be opened."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for _ in range(6):
            noise = random.integers(0, 255, (32, 48, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_videos_are_opened_and_unless_quick_decoded(tmp_path):
    (tmp_path / "Activity_Videos").mkdir()
    good = film(tmp_path / "Activity_Videos" / "good.avi").read_bytes()
    start = [at for at in range(len(good)) if good[at : at + 4] == b"00dc"][4] + 8
    (tmp_path / "Activity_Videos" / "hurt.avi").write_bytes(good[:start] + bytes(1000) + good[start + 1000 :])
    (tmp_path / "Activity_Videos" / "none.avi").write_bytes(b"none")
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    records = [{"video": f"{name}.avi", "conversations": turns} for name in ("good", "hurt", "none", "gone")]
    (tmp_path / "video_chat.json").write_text(json.dumps(records))
    quick, _ = look("chatunivi", tmp_path, quick=True)
    assert quick.faults == {PICTURES: 1, MISSING: 1}
    assert quick.counts == {"talks": 4, "rounds": 4, "with a video": 2}
    findings, _ = look("chatunivi", tmp_path)
    assert findings.faults == {PICTURES: 2, MISSING: 1}
    assert any("hurt.avi" in message for message in findings.first[PICTURES])


def test_it_works_on_several_threads_and_tells_how_far_it_is(small_synthetic, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    told = []

    class Listener(Silent):
        def start(self, task, total, done=0):
            told.append((task, total))

        def advance(self, n=1, **figures):
            told.append(figures)

    verify(*open_tolerantly("mevis", small_synthetic / "mevis", "train"), True, Listener())
    assert told == [("verify mevis train", 6), *[{"faults": 0}] * 6]
