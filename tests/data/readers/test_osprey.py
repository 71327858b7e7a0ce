"""Region prompts of Osprey-724K: five files, masks as polygons or RLE, pictures in one of four folders."""

from __future__ import annotations

import numpy as np
import pytest

from salmacli.data import rle
from salmacli.data.readers import osprey
from salmacli.data.sets import open_set
from salmacli.errors import DataError

SIZE = (24, 32)
SHOWN = "There are 2 part regions in the picture: region1<vp></vp>, region2<vp></vp>.\n"


def talked(masks, *turns, **more):
    said = [{"from": who, "value": text} for who, text in turns]
    return {**entry(masks), "conversations": said, **more}


def entry(masks, name="COCO_train2014_000000000009.jpg"):
    annotation = [{"segmentation": mask, "bbox": [0, 0, 1, 1], "id": n} for n, mask in enumerate(masks)]
    return {"id": "9", "file_name": name, "height": 24, "width": 32, "annotation": annotation}


@pytest.fixture
def opened(put, tmp_path):
    def opened(file=osprey.FILES[0], *records, folder="train2014", size=SIZE):
        put(f"coco/{folder}/COCO_train2014_000000000009.jpg", size)
        put(f"Osprey-724K/{file}", list(records))
        return open_set("osprey", tmp_path, "train")

    return opened


@pytest.mark.parametrize("kind", ["compressed", "uncompressed", "polygons"])
def test_regions_are_shown_once_and_then_spoken_of(opened, square, kind):
    places = ((2, 3), (10, 12))
    record = talked(
        [square(kind, at=at) for at in places],
        ("human", "<image>\nWhat does <region1> do to <region2>?"),
        ("gpt", "<region1> holds <region2> <p>."),
        ("human", "Why?"),
        ("gpt", "It is [SEG]."),
    )
    talks = opened(osprey.FILES[0], record)
    talk = talks.talk(0)
    assert [one.question for one in talk.rounds] == [SHOWN + "What does region1 do to region2?", "Why?"]
    assert [one.answer for one in talk.rounds] == ["region1 holds region2 p.", "It is [ SEG]."]
    assert (talk.regions, talk.targets) == (("0", "1"), ())
    for key, at in zip(talk.regions, places, strict=True):
        assert np.array_equal(rle.decode(talks.mask(0, key, SIZE)), square("mask", at=at))
    assert talks.frames(0).still and talks.frames(0)[0].shape == (*SIZE, 3)
    assert talks.shown(0) and 60 < talks.length(0) < 120


@pytest.mark.parametrize("file", [file for file in osprey.FILES if file != osprey.DESCRIPTIONS])
def test_questions_of_brief_answers_ask_for_them(opened, square, file):
    talk = opened(file, talked([square("polygons")], ("human", "What is <region1>?"), ("gpt", "A cup."))).talk(0)
    brief = talk.rounds[0].question.endswith("What is region1? Answer the question using a single word or phrase.")
    assert brief == (file in ("osprey_part_level.json", "osprey_short_form.json"))


def test_descriptions_are_asked_for_in_several_wordings(opened, square):
    record = {**entry([square("polygons")] * 2), "description": ["<region1>: A red cup.", "region2: A <big> dog."]}
    talk = opened(osprey.DESCRIPTIONS, record).talk(0)
    assert [one.answer for one in talk.rounds] == ["A red cup.", "A big dog."]
    for number, one in enumerate(talk.rounds, 1):
        for question in (one.question, *one.wordings):
            assert question.startswith(SHOWN) == (number == 1)
            assert f"region{number}" in question.removeprefix(SHOWN)
            assert question.count("<vp></vp>") == (2 if number == 1 else 0)
        assert len({one.question, *one.wordings}) == 4


def test_the_files_that_are_there_are_read_one_after_the_other(opened, square):
    mask = [square("polygons")]
    opened("osprey_part_level.json", talked(mask, ("human", "a"), ("gpt", "part")))
    opened(osprey.DESCRIPTIONS, {**entry(mask), "description": ["whole"]})
    talks = opened(osprey.FILES[0], *[talked(mask, ("human", "a"), ("gpt", str(n))) for n in range(2)])
    assert [talks.talk(n).rounds[0].answer for n in range(len(talks))] == ["0", "1", "whole", "part"]
    assert [talks.talk(n).name.split("/")[-1] for n in range(4)] == [
        "osprey_conversation.json, record 0",
        "osprey_conversation.json, record 1",
        "osprey_detail_description.json, record 0",
        "osprey_part_level.json, record 0",
    ]


@pytest.mark.parametrize("folder", ["train2014", "val2014", "train2017", "val2017"])
def test_the_picture_is_found_in_any_of_the_folders(opened, square, folder):
    talks = opened(osprey.FILES[0], talked([square("polygons")], ("human", "a"), ("gpt", "b")), folder=folder)
    assert talks.frames(0).size == SIZE


FAULTS = {
    "no annotation": (lambda r: r.pop("annotation"), "key annotation: a list is needed"),
    "no region": (lambda r: r.update(annotation=[]), "there is no region"),
    "region is a text": (lambda r: r.update(annotation=["x"]), "region 0: an object is needed"),
    "no mask": (lambda r: r["annotation"][0].pop("segmentation"), "region 0: a list is needed"),
    "half a polygon": (lambda r: r["annotation"][0].update(segmentation=[[1, 2, 3]]), "polygon of 3 numbers"),
    "other sides": (lambda r: r.update(height=32, width=24), r"size \(32, 24\) where the picture is \(24, 32\)"),
    "no sides": (lambda r: r.pop("height"), "key height: an integer is needed"),
    "evil name": (lambda r: r.update(file_name="../x.jpg"), "key file_name: .*plain name"),
    "no conversation": (lambda r: r.pop("conversations"), "key conversations: a list is needed"),
    "empty answer": (lambda r: r["conversations"][1].update(value="<>"), "message 1: the text is empty"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_broken_record_says_so_when_it_is_visited(opened, square, fault):
    edit, message = FAULTS[fault]
    good, broken = (talked([square("polygons")], ("human", "a"), ("gpt", "b")) for _ in range(2))
    edit(broken)
    talks = opened(osprey.FILES[0], good, broken)
    assert talks.talk(0).rounds
    with pytest.raises(DataError, match=message) as caught:
        talks.frames(1), [talks.mask(1, key, SIZE) for key in talks.talk(1).regions]
    assert "osprey_conversation.json, record 1" in str(caught.value)


@pytest.mark.parametrize("texts", [[], ["a", "b", "c"], ["<region1>: "], [3], "text", None])
def test_descriptions_that_are_wrong(opened, square, texts):
    talks = opened(osprey.DESCRIPTIONS, {**entry([square("polygons")] * 2), "description": texts})
    with pytest.raises(DataError, match=r"osprey_detail_description\.json, record 0.*description"):
        talks.talk(0)


def test_folders_that_are_missing(put, tmp_path):
    with pytest.raises(DataError, match="Osprey-724K"):
        open_set("osprey", tmp_path, "train")
    put("Osprey-724K/other.json", [])
    with pytest.raises(DataError, match="osprey_conversation"):
        open_set("osprey", tmp_path, "train")
