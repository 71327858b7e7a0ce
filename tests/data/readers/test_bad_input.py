"""Files from strangers: one line that names file and key, never a traceback of another library."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
from PIL import Image

from salmacli.data.benchmarks import open_benchmark
from salmacli.data.readers.plain_pickle import read_pickle
from salmacli.data.readers.shapes import segmentation
from salmacli.errors import DataError


@pytest.fixture
def mevis(synthetic, tmp_path):
    shutil.copytree(synthetic / "mevis" / "valid_u", tmp_path / "mevis" / "valid_u")
    return tmp_path / "mevis"


def first_video(content):
    return next(iter(content["videos"].values()))


def first_expression(content):
    return next(iter(first_video(content)["expressions"].values()))


META, MASKS = "valid_u/meta_expressions.json", "valid_u/mask_dict.json"

EDITS = {
    "evil video": (lambda c: c["videos"].update({"../up": first_video(c)}), r"'\.\./up' is not a plain name"),
    "absolute video": (lambda c: c["videos"].update({"/etc": first_video(c)}), "'/etc' is not a plain name"),
    "evil frame": (lambda c: first_video(c)["frames"].append("../../x"), "is not a plain name"),
    "frame of another type": (lambda c: first_video(c)["frames"].append(7), "is not a plain name"),
    "evil expression": (
        lambda c: first_video(c)["expressions"].update({"a/b": first_expression(c)}),
        "'a/b' is not a plain name",
    ),
    "no frames": (lambda c: first_video(c).update(frames=[]), "no frames"),
    "frames twice": (lambda c: first_video(c)["frames"].append("00000"), "listed twice"),
    "empty expression": (
        lambda c: first_expression(c).update(exp="  "),
        "expression 0: the expression is empty",
    ),
    "expression is a number": (lambda c: first_expression(c).update(exp=3), "the expression is empty"),
    "no expressions": (lambda c: first_video(c).pop("expressions"), "key expressions: an object is needed"),
    "no anno_id": (lambda c: first_expression(c).pop("anno_id"), "key anno_id: a list is needed"),
    "anno_id of another type": (lambda c: first_expression(c).update(anno_id=[[1]]), "an integer is needed"),
    "video is a list": (lambda c: c["videos"].update(x=[]), "video x: an object is needed"),
    "no videos": (lambda c: c.update(videos={}), "lists no videos"),
    "another file": (lambda c: c.pop("videos"), "key videos: an object is needed"),
}


@pytest.mark.parametrize("edit", list(EDITS))
def test_expressions_that_are_wrong(mevis, change, edit):
    change(mevis / META, EDITS[edit][0])
    with pytest.raises(DataError, match=EDITS[edit][1]) as caught:
        open_benchmark("mevis", mevis)
    assert "meta_expressions.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def _resize(content):
    key = next(iter(content))
    content[key] = [mask and {**mask, "size": [160, 120]} for mask in content[key]]


def _shorten(content):
    for key in content:
        content[key] = content[key][:-1]


MASK_EDITS = {
    "key missing": (lambda c: c.clear(), "no masks under key"),
    "another size": (lambda c: [_resize(c)], r"RLE is of size \(160, 120\) where the frame is \(120, 160\)"),
    "too few": (_shorten, "11 masks for 12 frames"),
    "broken": (lambda c: c.update({k: [{"size": [120, 160], "counts": "??"}] * 12 for k in c}), "RLE"),
    "not a list": (lambda c: c.update(dict.fromkeys(c, 5)), "a list is needed"),
    "not an RLE": (lambda c: c.update(dict.fromkeys(c, [7] * 12)), "RLE without a valid size"),
}


@pytest.mark.parametrize("edit", list(MASK_EDITS))
def test_masks_that_are_wrong(mevis, change, edit):
    change(mevis / MASKS, MASK_EDITS[edit][0])
    benchmark = open_benchmark("mevis", mevis)
    for truth in (benchmark.truth, benchmark.truth_bits):
        with pytest.raises(DataError, match=MASK_EDITS[edit][1]) as caught:
            [truth(video, one) for video in benchmark.videos for one in video.expressions]
        assert "mask_dict.json" in str(caught.value)


def test_broken_json_names_line_and_column(mevis):
    (mevis / META).write_text('{"videos": {')
    with pytest.raises(DataError, match=r"meta_expressions\.json.* line 1, column 13"):
        open_benchmark("mevis", mevis)


def test_missing_masks_are_missed_only_where_they_are_public(mevis):
    (mevis / MASKS).unlink()
    with pytest.raises(DataError, match=r"mask_dict\.json is missing"):
        open_benchmark("mevis", mevis)
    (mevis / "valid_u").rename(mevis / "valid")
    benchmark = open_benchmark("mevis", mevis, "valid")
    assert benchmark.truth(benchmark.videos[0], benchmark.videos[0].expressions[0]) is None


def test_a_missing_frame_is_named(mevis):
    benchmark = open_benchmark("mevis", mevis)
    video = benchmark.videos[0]
    benchmark.frame_path(video, video.frames[0]).unlink()
    with pytest.raises(DataError, match=rf"{video.name}.00000\.jpg does not exist"):
        benchmark.truth(video, video.expressions[0])


def test_revos_type_out_of_range(synthetic, change, tmp_path):
    shutil.copytree(synthetic / "revos", tmp_path / "revos")
    change(tmp_path / "revos/meta_expressions_valid_.json", lambda c: first_expression(c).update(type_id=9))
    with pytest.raises(DataError, match="type_id 9"):
        open_benchmark("revos", tmp_path / "revos")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(synthetic, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(synthetic / "davis17", tmp_path / "davis17")
    (tmp_path / "davis17/valid/mask_dict.pkl").write_bytes(pickle.dumps({"0": Evil()}))
    benchmark = open_benchmark("davis", tmp_path / "davis17")
    with pytest.raises(DataError, match=r"mask_dict\.pkl.*not plain data"):
        benchmark.truth(benchmark.videos[0], benchmark.videos[0].expressions[0])
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04]\x94(", pickle.dumps([1, 2, 3])[:-3]])
def test_a_broken_pickle_is_refused(tmp_path, content):
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(DataError, match=r"refs\.p"):
        read_pickle(tmp_path / "refs.p")


def test_pickles_of_python_2_are_read(tmp_path):
    (tmp_path / "refs.p").write_bytes(pickle.dumps([{"split": "val", "ids": [1, 2.5, None, True]}], protocol=2))
    assert read_pickle(tmp_path / "refs.p") == [{"split": "val", "ids": [1, 2.5, None, True]}]


def test_a_reference_to_nothing_is_refused(synthetic, change, tmp_path):
    shutil.copytree(synthetic / "refcoco", tmp_path / "refcoco")
    change(tmp_path / "refcoco/ref_seg/refcoco/instances.json", lambda c: c["annotations"].clear())
    with pytest.raises(DataError, match=r"refs\(unc\)\.p, reference \d+: annotation \d+ is not one of"):
        open_benchmark("refcoco", tmp_path / "refcoco")


def test_a_first_frame_that_is_a_bomb(mevis, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    benchmark = open_benchmark("mevis", mevis)
    with pytest.raises(DataError, match=r"00000\.jpg cannot be read .*bomb"):
        benchmark.size(benchmark.videos[0])


OWN = {
    "name": ({"image": "../a.jpg", "mask": [], "text": []}, "not a plain name"),
    "counts": ({"image": "a.jpg", "mask": [[[0, 0, 4, 0, 4, 4]]], "text": []}, "1 masks but 0 texts"),
    "text": (
        {"image": "a.jpg", "mask": [[[0, 0, 4, 0, 4, 4]]], "text": [""]},
        "entry 0, text 0: the expression",
    ),
    "image": ({"mask": [], "text": []}, "not a plain name"),
}


@pytest.mark.parametrize("case", list(OWN))
def test_own_data_that_is_wrong(tmp_path, case):
    entry, message = OWN[case]
    (tmp_path / "annotations.json").write_text(json.dumps([entry]))
    with pytest.raises(DataError, match=message):
        open_benchmark("own", tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        [5],
        [[1, 2, 3]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, "x"]],
        [[1, 2, 3, 4, 5, float("nan")]],
        {"size": [3, 3]},
    ],
)
def test_a_segmentation_that_is_none(value):
    with pytest.raises(DataError, match="here"):
        segmentation(value, (20, 20), "here")
