"""gRefCOCO: any number of targets in every form of the official code, and files that are wrong."""

from __future__ import annotations

import re
import shutil

import pytest

from salmacli.data.benchmarks import open_benchmark
from salmacli.errors import DataError

GREFS, INSTANCES = "ref_seg/grefcoco/grefs(unc).json", "ref_seg/grefcoco/instances.json"


def _crowds(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


GREFS_EDITS = {
    "reference is a number": (GREFS, lambda c: c.insert(0, 5), "reference 0: an object is needed"),
    "unknown annotation": (GREFS, lambda c: c[0].update(ann_id=[10**6]), "0: annotation 1000000 is not one of"),
    "nothing and something": (GREFS, lambda c: c[0].update(ann_id=[-1, 1]), "annotation -1 is not one of"),
    "annotation is a text": (GREFS, lambda c: c[0].update(ann_id=["x"]), "key ann_id: an integer is needed"),
    "annotation is null": (GREFS, lambda c: c[0].update(ann_id=None), "key ann_id: an integer is needed"),
    "annotation in a list": (GREFS, lambda c: c[0].update(ann_id=[[1]]), "key ann_id: an integer is needed"),
    "unknown image": (GREFS, lambda c: c[0].update(image_id=10**6), "image 1000000 is not in"),
    "unknown image for nothing": (GREFS, lambda c: c[0].update(image_id=9, ann_id=[]), "image 9 is not in"),
    "image of another": (INSTANCES, lambda c: [a.update(image_id=99) for a in c["annotations"]], "not one of image 1"),
    "image is a text": (GREFS, lambda c: c[0].update(image_id="one"), "key image_id: an integer is needed"),
    "reference twice": (GREFS, lambda c: c[1].update(ref_id=0), "its ref_id stands twice for image 1"),
    "no sentences": (GREFS, lambda c: c[0].pop("sentences"), "key sentences: a list is needed"),
    "empty sentence": (GREFS, lambda c: c[0]["sentences"][0].update(raw=""), "the expression is empty"),
    "no raw sentence": (GREFS, lambda c: c[0]["sentences"][0].pop("raw"), "the expression is empty"),
    "sentence is a text": (GREFS, lambda c: c[0].update(sentences=["it"]), "an object is needed, found 'it'"),
    "no images": (INSTANCES, lambda c: c.pop("images"), "key images: a list is needed"),
    "evil image": (INSTANCES, lambda c: c["images"][0].update(file_name="../x.jpg"), "not a plain name"),
    "only crowds": (INSTANCES, _crowds, "all of its annotations are crowds"),
    "no such split": (GREFS, lambda c: [r.update(split="val") for r in c], "no reference of split 'train'"),
}


@pytest.fixture
def grefcoco(synthetic, change, tmp_path):
    """Its files, with the pictures of the first two train videos and their references alone."""
    shutil.copytree(synthetic / "refcoco", tmp_path / "refcoco", ignore=shutil.ignore_patterns("refcoco*"))
    change(tmp_path / "refcoco" / GREFS, lambda c: c.__setitem__(slice(None), [r for r in c if r["image_id"] < 3]))
    change(tmp_path / "refcoco" / INSTANCES, lambda c: c.update(images=c["images"][:2]))
    return tmp_path / "refcoco"


@pytest.mark.parametrize("case", list(GREFS_EDITS))
def test_references_of_grefcoco_that_are_wrong(grefcoco, change, case):
    file, edit, message = GREFS_EDITS[case]
    change(grefcoco / file, edit)
    with pytest.raises(DataError, match=message) as caught:
        open_benchmark("grefcoco", grefcoco, "train")
    assert "ref_seg/grefcoco" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [GREFS, INSTANCES])
def test_another_file_in_the_place_of_one_of_grefcoco(grefcoco, file):
    (grefcoco / file).write_text('"refs"')
    with pytest.raises(DataError, match=rf"{re.escape(file)}: an? \w+ is needed, found 'refs'"):
        open_benchmark("grefcoco", grefcoco, "train")


@pytest.mark.parametrize("file", [GREFS, INSTANCES])
def test_a_missing_file_of_grefcoco_is_named(grefcoco, file):
    (grefcoco / file).unlink()
    with pytest.raises(DataError, match=re.escape(file)):
        open_benchmark("grefcoco", grefcoco, "train")


@pytest.mark.parametrize(
    ("ann_id", "targets"), [([-1], ()), ([], ()), (-1, ()), (1, ("1",)), ([1], ("1",)), ([2, 1], ("2", "1"))]
)
def test_the_ways_to_say_what_is_meant(grefcoco, change, ann_id, targets):
    change(grefcoco / GREFS, lambda c: c[0].update(ann_id=ann_id))
    expression = open_benchmark("grefcoco", grefcoco, "train").videos[0].expressions[0]
    assert (expression.targets, expression.kind) == (targets, "referring" if targets else "no-target")


def test_a_crowd_among_others_is_left_out(grefcoco, change):
    change(grefcoco / GREFS, lambda c: c[0].update(ann_id=[1, 2]))
    change(grefcoco / INSTANCES, lambda c: c["annotations"][0].update(iscrowd=1))
    change(grefcoco / GREFS, lambda c: c.__setitem__(slice(None), c[:1]))
    assert open_benchmark("grefcoco", grefcoco, "train").videos[0].expressions[0].targets == ("2",)
