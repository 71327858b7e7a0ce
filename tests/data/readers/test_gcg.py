"""Captions with masks, in the layouts of GranDf, OpenPSG, RefCOCOg and Flickr30k, whichever way masks are written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from salmacli.data import rle
from salmacli.data.sets import open_set, open_tolerantly
from salmacli.errors import DataError

SIZE = (24, 32)
PLACES = {
    "gcg-grandf": ("annotations/GranDf_HA_GCG_train.json", "images/grandf/train/a.jpg"),
    "gcg-openpsg": ("annotations/OpenPsgGCG_train.json", "images/coco2017/train2017/a.jpg"),
    "gcg-refcocog": ("annotations/RefCOCOg_GCG_train.json", "images/coco2014/train2014/a.jpg"),
    "gcg-flickr30k": ("annotations/flickr_mergedGT_GCG_train.json", "images/flickr30k/Flickr30K/a.jpg"),
}
CAPTION = "A man in red holds a dog."
MAN, DOG = (0, 12), (19, 24)
TAGGED = "<p> A man in red </p> [SEG] holds <p> a dog </p> [SEG]."


def grandf(masks, caption=CAPTION, spans=(DOG, MAN), **more):
    groundings = {
        f"phrase {n}": {"token_positives": list(span), "rle_masks": [mask]}
        for n, (span, mask) in enumerate(zip(spans, masks, strict=True))
    }
    return {
        "file_name": "a.jpg",
        "height": 24,
        "width": 32,
        "image_id": "a",
        "caption": caption,
        "groundings": groundings,
        **more,
    }


def refcocog(masks, caption=CAPTION, phrases=("a dog", "a man in red")):
    refs = [
        {"sentence": phrase, "bbox": [0, 0, 1, 1], "segmentation": mask}
        for phrase, mask in zip(phrases, masks, strict=True)
    ]
    return {"17": {"img_file_name": "a.jpg", "caption": caption, "refs": refs}}


def annotation(mask, span, number=1, image=5, **more):
    usual = {"id": number, "image_id": image, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0, "sam_mask": mask}
    return {**usual, "tokens_positive": [list(span)], **more}


def flickr(masks, caption=CAPTION, spans=(DOG, MAN), **more):
    image = {"id": 5, "file_name": "a.jpg", "caption": caption, "height": 32, "width": 48, **more}
    annotations = [annotation(mask, span, n) for n, (mask, span) in enumerate(zip(masks, spans, strict=True))]
    return {"images": [image], "annotations": annotations}


@pytest.fixture
def opened(put, tmp_path):
    def opened(name, content, size=SIZE):
        file, picture = PLACES[name]
        put(picture, size)
        put(file, content)
        return open_set(name, tmp_path, "train")

    return opened


@pytest.mark.parametrize("kind", ["compressed", "uncompressed", "polygons"])
@pytest.mark.parametrize("name", list(PLACES))
def test_every_layout_with_every_way_to_write_masks(opened, square, name, kind):
    size = (32, 48) if name == "gcg-flickr30k" else SIZE
    masks = [square(kind, size, at) for at in ((2, 3), (10, 12))]
    if name == "gcg-refcocog":
        content = [refcocog(masks)]
    elif name == "gcg-flickr30k":
        content = flickr(masks)
    else:
        content = [grandf(masks)]
        for one, mask in zip(content[0]["groundings"].values(), masks, strict=True):
            one["rle_masks"] = mask if kind == "polygons" else [mask]
    if name == "gcg-openpsg":
        content[0]["file_name"] = "train2017/a.jpg"
    talks = opened(name, content, size)
    talk = talks.talk(0)
    (one,) = talk.rounds
    assert one.answer == TAGGED
    assert "mask" in one.question and all(one.wordings)
    # The man comes first in the caption, but second in the file.
    expected = [square("mask", size, at) for at in ((10, 12), (2, 3))]
    for key, mask in zip(talk.targets, expected, strict=True):
        assert np.array_equal(rle.decode(talks.mask(0, key, size)), mask)
    frames = talks.frames(0)
    assert frames.still and frames.size == size and frames[0].shape == (*size, 3)
    assert talks.shown(0) and talks.length(0) == len(CAPTION)


def test_several_masks_of_one_phrase_are_united(opened, square):
    masks = [square("compressed", at=at) for at in ((2, 3), (8, 9))]
    talks = opened("gcg-grandf", [grandf(masks, spans=(MAN, MAN))])
    (key,) = talks.talk(0).targets
    both = square("mask", at=(2, 3)) | square("mask", at=(8, 9))
    assert np.array_equal(rle.decode(talks.mask(0, key, SIZE)), both)
    listed = grandf(masks[:1], spans=(MAN,))
    listed["groundings"]["phrase 0"]["rle_masks"] = masks
    talks = opened("gcg-grandf", [listed])
    assert np.array_equal(rle.decode(talks.mask(0, "0", SIZE)), both)


@pytest.mark.parametrize(
    ("spans", "answer"),
    [
        (((0, 5), (0, 12)), "<p> A man in red </p> [SEG] holds a dog."),  # one begins where another does
        (((0, 12), (6, 18)), "<p> A man </p> [SEG] <p> in red holds </p> [SEG] a dog."),  # one runs into another
        (((0, 5), (5, 12)), "<p> A man </p> [SEG]<p> in red </p> [SEG] holds a dog."),  # they touch
        (((-1, -1), (0, 5)), "<p> A man </p> [SEG] in red holds a dog."),  # one was not found
        (((20, 90), (0, 5)), "<p> A man </p> [SEG] in red holds a dog."),  # one leaves the caption
    ],
)
def test_phrases_never_stand_in_each_other(opened, square, spans, answer):
    talk = opened("gcg-grandf", [grandf([square("compressed")] * 2, spans=spans)]).talk(0)
    assert talk.rounds[0].answer == answer
    assert answer.count("[SEG]") == len(talk.targets)


@pytest.mark.parametrize("name", ["gcg-grandf", "gcg-flickr30k"])
def test_of_phrases_that_begin_together_the_longest_stays_and_the_others_are_counted(opened, square, name):
    masks = [square("compressed")] * 5
    spans = ((0, 5), (0, 12), (0, 12), (0, 1), DOG)
    content = [grandf(masks, spans=spans)] if name == "gcg-grandf" else flickr(masks, spans=spans)
    talks = opened(name, content)
    assert talks.dropped == {"phrases that begin where a longer one does": 2}
    talk = talks.talk(0)
    assert (talk.rounds[0].answer, talk.targets) == (TAGGED, ("1+2", "4"))


@pytest.mark.parametrize("nothing", [[], None], ids=["empty", "null"])
@pytest.mark.parametrize("name", ["gcg-grandf", "gcg-refcocog", "gcg-flickr30k"])
def test_a_phrase_without_a_mask_is_passed_over(opened, square, name, nothing):
    masks = [nothing, square("polygons")]
    content = flickr(masks) if name == "gcg-flickr30k" else [refcocog(masks)]
    if name == "gcg-grandf":
        content = [grandf(masks)]
        content[0]["groundings"]["phrase 0"]["rle_masks"] = nothing
    talk = opened(name, content).talk(0)
    assert (talk.rounds[0].answer, talk.targets) == ("<p> A man in red </p> [SEG] holds a dog.", ("1",))


def test_quotes_around_a_caption_and_marks_in_it(opened, square):
    caption = f'"{CAPTION} <p>[SEG]</p>" '
    talk = opened("gcg-grandf", [grandf([square("compressed")] * 2, caption)]).talk(0)
    # Quotes are taken off before white space is, as by the code that counted the positions.
    assert talk.rounds[0].answer == f'{TAGGED} < p>[ SEG]< /p>"'
    talk = opened("gcg-grandf", [grandf([square("compressed")] * 2, f'"{CAPTION}"')]).talk(0)
    assert talk.rounds[0].answer == TAGGED


def test_refcocog_finds_its_phrases(opened, square):
    masks = [square("polygons", at=at) for at in ((2, 3), (8, 9), (10, 11), (12, 13))]
    caption = "Woman: a Dog and a  dog near a man."
    talks = opened("gcg-refcocog", [refcocog(masks, caption, ("a dog", "A dog", "man", "a cat"))])
    talk = talks.talk(0)
    assert talk.rounds[0].answer == ("Woman: <p> a Dog </p> [SEG] and <p> a  dog </p> [SEG] near a <p> man </p> [SEG].")
    assert talk.targets == ("0", "1", "2")


def test_flickr_brings_every_picture_its_own_annotations(opened, square):
    size = (32, 48)
    masks = [square("compressed", size, at) for at in ((2, 3), (10, 12), (20, 20))]
    content = flickr([], spans=())
    content["images"].append({**content["images"][0], "id": 2})
    content["annotations"] = [
        annotation(masks[0], DOG, 10, image=5),
        annotation(masks[1], DOG, 11, image=2),
        annotation(masks[2], MAN, 12, image=5),
        annotation(masks[1], MAN, 13, image=5, ignore=True),
        annotation(masks[2], MAN, 14, image=2, bbox=[5, 5, 0.5, 9]),
        annotation(masks[2], MAN, 15, image=2, area=0),
        annotation(masks[2], MAN, 16, image=2, bbox=[-9, 5, 8, 9]),
        annotation(masks[2], MAN, 17, image=404),
    ]
    # The lists may come in either order.
    content = {"info": {}, "annotations": content["annotations"], "images": content["images"]}
    talks = opened("gcg-flickr30k", content, size)
    assert [talks.talk(n).rounds[0].answer.count("[SEG]") for n in range(2)] == [2, 1]
    found = [[rle.decode(talks.mask(n, key, size)) for key in talks.talk(n).targets] for n in range(2)]
    for mask, at in zip((*found[0], *found[1]), ((20, 20), (2, 3), (10, 12)), strict=True):
        assert np.array_equal(mask, square("mask", size, at))


def test_what_is_left_out_is_counted(opened, square):
    mask = square("compressed")
    talks = opened(
        "gcg-openpsg", [grandf([], spans=()), grandf([mask], spans=(MAN,)), grandf([mask], spans=((-1, -1),))]
    )
    assert (len(talks), talks.dropped) == (1, {"no phrase of the caption has a mask": 2})
    assert "record 1" in talks.talk(0).name
    content = flickr([mask], spans=(MAN,))
    (image,) = content["images"]
    content["images"] += [{**image, "caption": "Two words"}, {**image, "height": 31}, {**image, "id": 6}]
    talks = opened("gcg-flickr30k", content)
    assert len(talks) == 1 and sorted(talks.dropped) == [
        "caption of less than 3 words",
        "no phrase of the caption has a mask",
        "picture of less than 32 pixels",
    ]


BROKEN = {
    "another size": (
        lambda c, m: c["groundings"]["phrase 0"].update(rle_masks=[m("compressed", (32, 24))]),
        "is of size",
    ),
    "broken counts": (
        lambda c, m: c["groundings"]["phrase 0"].update(rle_masks=[{"size": list(SIZE), "counts": "??"}]),
        "RLE covers 30 pixels but its size 24x32 has 768",
    ),
    "runs too short": (
        lambda c, m: c["groundings"]["phrase 0"].update(rle_masks=[{"size": list(SIZE), "counts": [4, 5]}]),
        "phrase 0",
    ),
    "a number for a polygon": (lambda c, m: c["groundings"]["phrase 0"].update(rle_masks=[7]), "a list is needed"),
    "no caption": (lambda c, m: c.update(caption='""'), "key caption: the caption is empty"),
    "caption is a number": (lambda c, m: c.update(caption=5), "key caption: the caption is empty"),
    "no groundings": (lambda c, m: c.pop("groundings"), "key groundings: an object is needed"),
    "one position": (
        lambda c, m: c["groundings"]["phrase 1"].update(token_positives=[3]),
        "phrase 'phrase 1', token positions|1 token positions",
    ),
    "position is a text": (
        lambda c, m: c["groundings"]["phrase 1"].update(token_positives=["a", 3]),
        "an integer is needed",
    ),
    "evil name": (lambda c, m: c.update(file_name="../../a.jpg"), "key file_name: .* is not a plain name"),
    "no name": (lambda c, m: c.pop("file_name"), "key file_name: the name of a file is needed"),
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_broken_record_says_so_when_it_is_visited(opened, square, fault):
    edit, message = BROKEN[fault]
    broken = grandf([square("compressed")] * 2)
    edit(broken, square)
    talks = opened("gcg-grandf", [grandf([square("compressed")] * 2), broken])
    assert len(talks) == 2
    with pytest.raises(DataError, match=message) as caught:
        talks.frames(1), [talks.mask(1, key, SIZE) for key in talks.talk(1).targets]
    assert "GranDf_HA_GCG_train.json, record 1" in str(caught.value)
    assert talks.talk(0).rounds[0].answer == TAGGED


def test_refcocog_records_have_one_entry(opened, square):
    two = {**refcocog([], phrases=()), "18": {}}
    talks = opened("gcg-refcocog", [refcocog([square("polygons")] * 2), two])
    with pytest.raises(DataError, match="record 1: an object is needed"):
        talks.talk(1)


def test_flickr_annotations_that_are_broken(opened, square):
    mask = square("compressed", (32, 48))
    for more in ({"tokens_positive": []}, {"tokens_positive": [[1]]}, {"tokens_positive": 5}):
        content = flickr([mask], spans=(MAN,))
        content["annotations"][0].update(more)
        talks = opened("gcg-flickr30k", content)
        with pytest.raises(DataError, match=r"record 0, annotation 0, key tokens_positive"):
            talks.talk(0)


def test_flickr_annotations_of_no_picture_are_left_out_when_training(opened, square, tmp_path):
    mask = square("compressed", (32, 48))
    content = flickr([mask], spans=(MAN,))
    content["annotations"] += [annotation(mask, DOG, image=value) for value in (None, "five", 10**30)] + [7]
    with pytest.raises(DataError, match=r"annotation at byte \d+, key image_id: an integer"):
        opened("gcg-flickr30k", content)
    talks, faults = open_tolerantly("gcg-flickr30k", tmp_path, "train")
    assert (len(talks), len(faults)) == (1, 4)


def test_a_file_of_another_layout(put, tmp_path, opened):
    put("images/grandf/train/a.jpg", SIZE)
    with pytest.raises(DataError, match="GranDf_HA_GCG_train"):
        open_set("gcg-grandf", tmp_path, "train")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "GranDf_HA_GCG_train.json").write_text(json.dumps([])[:-1])
    with pytest.raises(DataError, match="not valid JSON"):
        open_set("gcg-grandf", tmp_path, "train")
