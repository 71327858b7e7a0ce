"""All sets by name: where they lie, how they are opened, and what training leaves out of them."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest

from salmacli.config.schema import TrainingSet
from salmacli.data import sets
from salmacli.data.benchmarks import Benchmark, open_benchmark
from salmacli.data.sets import open_set, open_tolerantly, usual_place
from salmacli.errors import DataError


def test_every_set_has_a_usual_place_and_an_opener(tmp_path):
    assert set(get_args(TrainingSet)) == set(sets.NAMES)
    for name in get_args(TrainingSet):
        assert usual_place(name, tmp_path) == tmp_path / sets._PLACES[name]
        with pytest.raises(DataError, match=f"{name}.*does not exist"):
            open_set(name, tmp_path / "nowhere", "train")


@pytest.mark.parametrize("place", ["coco2014/train2014", "ref_seg/refcoco/coco2014/train2014"])
def test_the_pictures_of_refcoco_may_lie_where_the_archives_have_them(synthetic, tmp_path, place):
    shutil.copytree(synthetic / "refcoco", tmp_path / "data")
    (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(tmp_path / "data" / "coco2014" / "train2014", tmp_path / "data" / place)
    benchmark = open_set("refcoco", usual_place("refcoco", tmp_path / "data"), "train")
    assert isinstance(benchmark, Benchmark)
    assert benchmark.frames(benchmark.videos[0])[0].shape == (120, 160, 3)


def spoil(content):
    """The first video has no frames, and another has an empty expression that is not its last."""
    names = sorted(content["videos"])
    content["videos"][names[0]]["frames"] = []
    content["videos"][names[1]]["expressions"]["1"]["exp"] = " "


SETS = {
    "mevis": ("mevis", "train", "train/meta_expressions.json"),
    "revos": ("revos", "train", "meta_expressions_train_.json"),
    "refytvos": ("rvos", "train", "meta_expressions/train/meta_expressions.json"),
    "davis": ("davis17", "valid", "meta_expressions/valid/meta_expressions.json"),
}


@pytest.mark.parametrize("name", list(SETS))
def test_what_is_broken_is_left_out_and_nothing_else_moves(synthetic, tmp_path, change, name):
    folder, split, file = SETS[name]
    shutil.copytree(synthetic / folder, tmp_path / folder)
    change(tmp_path / folder / file, spoil)
    with pytest.raises(DataError, match=r"has no frames|expression is empty"):
        open_set(name, tmp_path / folder, split)
    found, faults = open_tolerantly(name, tmp_path / folder, split)
    assert len(faults) == 2 and {True} == {file.split("/")[-1] in str(fault) for fault in faults}
    whole, left = (
        {
            (video.name, one.id): (one, benchmark.truth(video, one))
            for video in benchmark.videos
            for one in video.expressions
        }
        for benchmark in (open_benchmark(name, synthetic / folder, split), found)
    )
    first, second = sorted({video for video, _ in whole})[:2]
    assert left == {key: one for key, one in whole.items() if key[0] != first and key != (second, "1")}


def test_a_video_that_leaves_its_root_is_left_out(synthetic, tmp_path, change):
    shutil.copytree(synthetic / "mevis" / "train", tmp_path / "mevis" / "train")
    change(
        tmp_path / "mevis" / "train" / "meta_expressions.json",
        lambda content: content["videos"].update({"../up": next(iter(content["videos"].values()))}),
    )
    found, (fault,) = open_tolerantly("mevis", tmp_path / "mevis", "train")
    assert "'../up' is not a plain name" in str(fault)
    assert found.videos == open_set("mevis", synthetic / "mevis", "train").videos


def test_broken_references_are_left_out(synthetic, tmp_path, change):
    shutil.copytree(synthetic / "refcoco", tmp_path / "refcoco")
    path = tmp_path / "refcoco/ref_seg/refcoco/refs(unc).p"
    references = pickle.loads(path.read_bytes())
    first, second = [ref for ref in references if ref["split"] == "train"][:2]
    first["sentences"][0]["raw"] = ""
    second["ann_id"] = -5
    path.write_bytes(pickle.dumps(references))
    found, faults = open_tolerantly("refcoco", tmp_path / "refcoco", "train")
    count = sum(len(video.expressions) for video in open_set("refcoco", synthetic / "refcoco", "train").videos)
    assert sum(len(video.expressions) for video in found.videos) == count - 1 - len(second["sentences"])
    assert [part in str(fault) for part, fault in zip(("is empty", "annotation -5"), faults, strict=True)] == [True] * 2


def test_tolerance_ends_where_nothing_can_be_left_out(synthetic, tmp_path):
    with pytest.raises(DataError, match="no split"):
        open_tolerantly("mevis", synthetic / "mevis", "nonsense")
    (tmp_path / "annotations.json").write_text('[{"image": "../a.jpg", "mask": [], "text": []}]')
    with pytest.raises(DataError, match="lists no pictures"):
        open_tolerantly("own", tmp_path, "train")
    # And it ends with the opening.
    with pytest.raises(DataError, match="not a plain name"):
        open_set("own", tmp_path, "train")


def test_names_of_places_are_relative():
    assert not any(Path(place).is_absolute() or ".." in place for place in sets._PLACES.values())


def test_the_documentation_names_every_set_and_its_place():
    text = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:3] for row in text.splitlines() if row.startswith("| `")]
    places = {name: place.strip(" `") for names, place in rows[::-1] for name in re.findall(r"`([^`]+)`", names)}
    assert {name: places[name] for name in sets.NAMES} == {
        name: sets._PLACES[name] or "the folder itself" for name in sets.NAMES
    }
