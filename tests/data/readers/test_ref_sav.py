"""Ref-SAV: frames from a video file, masks of every fourth one, wherever Meta's archives were unpacked."""

from __future__ import annotations

import json
import pickle
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest

from salmacli.data import rle
from salmacli.data.readers import ref_sav
from salmacli.data.sets import open_set, open_tolerantly
from salmacli.errors import DataError

STATED = "sav_000/sav_train/sav_000/sav_000002"
SIZE = (32, 48)
ANNOTATED = 4


def film(path, frames=14, size=SIZE, shade=15, codec="libx264"):
    """Frame n is of grey n · shade; several hundred black ones take little time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            if shade or not number:
                picture = np.full((*size, 3), shade * number, dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def masklet(square):
    """Two objects that move, of which the second is gone in the last frame."""
    tracks = [[square("compressed", SIZE, (4 + 4 * t, 10 * n + 4)) for n in range(2)] for t in range(ANNOTATED)]
    tracks[-1][1] = rle.empty(*SIZE)
    return tracks


@pytest.fixture
def root(put, tmp_path, masklet):
    place = "sam_v_full/sav_train/sav_000/sav_000002"
    film(tmp_path / f"{place}.mp4")
    put(f"{place}_manual.json", {"video_id": "sav_000002", "masklet": masklet, "masklet_num": 2})
    objects = {str(n): {"formated": f"The object that {n}\n moves.", "short_caps": ["A thing"]} for n in (1, 0)}
    entry = {"video_path": f"{STATED}.mp4", "anno_path": f"{STATED}_manual.json", "objects": objects}
    put("Ref-SAV.json", {"sav_000002": entry})
    return tmp_path


def test_frames_and_masks_belong_together(root, square):
    benchmark = open_set("refsav", root, "train")
    (video,) = benchmark.videos
    assert (list(video.frames), len(video.frames)) == (["00000", "00004", "00008", "00012"], ANNOTATED)
    assert video.frames[1:3] == ("00004", "00008")
    frames = benchmark.frames(video)
    assert (frames.names, frames.size, frames.still, frames.fps) == (tuple(video.frames), SIZE, False, 6)
    assert [round(float(frame.mean()) / 15) for frame in frames] == [0, 4, 8, 12]
    assert [round(float(frame.mean()) / 15) for frame in frames.read([3, 1, -4])] == [12, 4, 0]
    assert round(float(frames[2].mean()) / 15) == 8
    # In the file the second object comes first.
    assert [(one.id, one.text) for one in video.expressions] == [
        ("1", "The object that 1 moves."),
        ("0", "The object that 0 moves."),
    ]
    for expression in video.expressions:
        truth = [rle.decode(mask) for mask in benchmark.truth(video, expression)]
        n = int(expression.id)
        for t, mask in enumerate(truth):
            there = square("mask", SIZE, (4 + 4 * t, 10 * n + 4))
            assert np.array_equal(mask, there if (t, n) != (3, 1) else np.zeros(SIZE, dtype=bool))
    everything = benchmark.annotated_bits(video)
    both = square("mask", SIZE, (4, 4)) | square("mask", SIZE, (4, 14))
    assert np.array_equal(everything[0].to_mask(), both)
    assert benchmark.public and benchmark.size(video) == SIZE


def test_opening_reads_no_annotation_and_each_visit_reads_one(root, monkeypatch):
    reads = []
    read = ref_sav.read_json
    monkeypatch.setattr(ref_sav, "read_json", lambda path: reads.append(path.name) or read(path))
    benchmark = open_set("refsav", root, "train")
    assert repr(benchmark.videos[0].frames) and reads == ["Ref-SAV.json"]
    benchmark = pickle.loads(pickle.dumps(benchmark))
    (video,) = benchmark.videos
    benchmark.frames(video), [benchmark.truth(video, one) for one in video.expressions], benchmark.annotated(video)
    assert reads == ["Ref-SAV.json", "sav_000002_manual.json"]


@pytest.mark.parametrize(
    "place", [f"sam_v_full/{STATED}", "sav_train/sav_000/sav_000002", "sam_v_full/sav_000/sav_000002", STATED]
)
def test_archives_may_have_been_unpacked_elsewhere(root, place):
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    for end in (".mp4", "_manual.json"):
        shutil.move(root / f"sam_v_full/sav_train/sav_000/sav_000002{end}", root / f"{place}{end}")
    benchmark = open_set("refsav", root, "train")
    assert len(list(benchmark.frames(benchmark.videos[0]))) == ANNOTATED


def test_a_real_annotation_of_sa_v(shared_data, put, tmp_path):
    place = "sam_v_full/sav_train/sav_000/sav_000001"
    film(tmp_path / f"{place}.mp4", frames=483, size=(848, 480), shade=0, codec="mpeg4")
    shutil.copy(shared_data / "sav" / "sav_000001_manual.json", tmp_path / f"{place}_manual.json")
    stated = "sav_000/sav_train/sav_000/sav_000001"
    objects = {str(n): {"formated": f"object {n}"} for n in range(5)}
    put(
        "Ref-SAV.json", {"x": {"video_path": f"{stated}.mp4", "anno_path": f"{stated}_manual.json", "objects": objects}}
    )
    benchmark = open_set("refsav", tmp_path, "train")
    (video,) = benchmark.videos
    frames = benchmark.frames(video)
    assert (len(video.frames), frames.names[-1], frames.size) == (121, "00480", (848, 480))
    # SA-V states each object's mean area in the frames where it is.
    stated_areas = json.loads((tmp_path / f"{place}_manual.json").read_text())["masklet_size_abs"]
    for expression, area in zip(video.expressions, stated_areas, strict=True):
        areas = [mask.area() for mask in benchmark.truth_bits(video, expression)]
        assert sum(areas) / sum(area > 0 for area in areas) == pytest.approx(area)


def entry_of(content):
    return content["sav_000002"]


FAULTS = {
    "evil video": (lambda c: entry_of(c).update(video_path="../../x.mp4"), "key video_path: .*plain name"),
    "absolute annotation": (lambda c: entry_of(c).update(anno_path="/etc/passwd"), "key anno_path: .*plain name"),
    "no video": (lambda c: entry_of(c).pop("video_path"), "key video_path: the name of a file"),
    "no objects": (lambda c: entry_of(c).pop("objects"), "key objects: an object is needed"),
    "no text": (lambda c: entry_of(c)["objects"]["1"].pop("formated"), "object 1, key formated: the expression is"),
    "empty text": (lambda c: entry_of(c)["objects"]["0"].update(formated=" "), "object 0, key formated: the exp"),
    "object is no number": (lambda c: entry_of(c)["objects"].update(x=entry_of(c)["objects"]["0"]), "an integer"),
    "evil key": (lambda c: c.update({"..": entry_of(c)}), "plain name"),
    "a list": (lambda c: c.update(sav_000003=[]), "video sav_000003: an object is needed"),
    "nothing": (lambda c: c.clear(), "lists no videos"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_expressions_that_are_wrong(root, change, fault):
    edit, message = FAULTS[fault]
    change(root / "Ref-SAV.json", edit)
    with pytest.raises(DataError, match=message) as caught:
        open_set("refsav", root, "train")
    assert "Ref-SAV.json" in str(caught.value)


def test_training_leaves_out_what_is_wrong_and_tells(root, change):
    def edit(content):
        entry_of(content)["objects"]["0"]["formated"] = ""
        content["other"] = {}

    change(root / "Ref-SAV.json", edit)
    benchmark, faults = open_tolerantly("refsav", root, "train")
    assert [one.id for one in benchmark.videos[0].expressions] == ["1"]
    assert ["object 0" in str(faults[0]), "video other" in str(faults[1]), len(faults)] == [True, True, 2]


MASKS = {
    "missing": (None, r"sav_000002_manual\.json is missing below"),
    "no masklet": (lambda c: c.pop("masklet"), "key masklet: a list is needed"),
    "nothing annotated": (lambda c: c.update(masklet=[]), "no frame is annotated"),
    "frame is an object": (lambda c: c["masklet"].__setitem__(2, {}), "key masklet, frame 00008: a list"),
    "object missing": (lambda c: c["masklet"][2].pop(), "frame 00008: 1 masks, none of object 1"),
    "another size": (
        lambda c: c["masklet"][1][1].update(rle.empty(48, 32)),
        r"_manual\.json, video sav_000002, frame 00004: RLE is of size \(48, 32\) where the frame is \(32, 48\)",
    ),
    "broken": (lambda c: c["masklet"][1][1].update(counts="??"), "frame 00004: RLE"),
    "no RLE": (lambda c: c["masklet"][1].__setitem__(1, 7), "frame 00004: RLE without a valid size"),
    "too many": (lambda c: c["masklet"].append(c["masklet"][0]), "has 14 frames, but frame 16 is annotated"),
}


@pytest.mark.parametrize("fault", list(MASKS))
def test_annotations_that_are_wrong(root, change, fault):
    edit, message = MASKS[fault]
    path = root / "sam_v_full/sav_train/sav_000/sav_000002_manual.json"
    path.unlink() if edit is None else change(path, edit)
    benchmark = open_set("refsav", root, "train")
    (video,) = benchmark.videos
    with pytest.raises(DataError, match=message):
        benchmark.frames(video), benchmark.truth(video, video.expressions[0])


def test_a_video_that_is_missing_or_broken(root):
    path = root / "sam_v_full/sav_train/sav_000/sav_000002.mp4"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    benchmark = open_set("refsav", root, "train")
    with pytest.raises(DataError, match=r"sav_000002\.mp4"):
        benchmark.size(benchmark.videos[0])
    path.unlink()
    with pytest.raises(DataError, match=r"sav_000002\.mp4 is missing below"):
        benchmark.frames(benchmark.videos[0])


def test_places_that_are_missing(tmp_path):
    with pytest.raises(DataError, match=r"Ref-SAV\.json"):
        open_set("refsav", tmp_path, "train")
    (tmp_path / "Ref-SAV.json").write_text("{}")
    with pytest.raises(DataError, match="no split 'val'"):
        open_set("refsav", tmp_path, "val")
