"""Whatever stands in a record, reading it gives a talk or a DataError, never another error."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from salmacli.data.sets import open_set
from salmacli.errors import DataError

SIZE = (24, 32)
JUNK = (
    *(
        None,
        True,
        -1,
        0,
        7,
        10**30,
        2.5,
        -1e308,
        "",
        " ",
        "x",
        "7",
        "../x",
        "\ud800",
        "<p>",
        [],
        [[]],
        [None],
        [[1, 2]],
    ),
    *({}, {"": {}}, {"size": [24, 32]}, {"size": [-1, 2], "counts": "0"}, {"size": [24, 32], "counts": [10**20]}),
)


def spoiled(content, random):
    """The content with one value, wherever it stands, replaced or taken out."""
    content = copy.deepcopy(content)
    place, key, holder = content, None, None
    while isinstance(place, (dict, list)) and place and (holder is None or random.random() < 0.8):
        keys = list(place) if isinstance(place, dict) else range(len(place))
        holder, key = place, keys[int(random.integers(len(keys)))]
        place = place[key]
    if random.random() < 0.2:
        del holder[key]
    else:
        holder[key] = JUNK[int(random.integers(len(JUNK)))]
    return content


def layouts(square):
    box, mask = square("polygons"), square("compressed")
    turns = [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"}]
    grounding = {"token_positives": [0, 5], "rle_masks": [mask]}
    image = {"id": 5, "file_name": "a.jpg", "caption": "a big cat", "width": 32, "height": 32}
    annotation = {
        "id": 1,
        "image_id": 5,
        "bbox": [1, 1, 8, 8],
        "area": 9,
        "tokens_positive": [[0, 5]],
        "sam_mask": mask,
    }
    region = {"file_name": "a.jpg", "height": 24, "width": 32, "annotation": [{"segmentation": box}]}
    return {
        "llava": ("llava_v1_5_mix665k.json", "llava_images", [{"image": "a.jpg", "conversations": turns}]),
        "gcg-grandf": (
            "annotations/GranDf_HA_GCG_train.json",
            "images/grandf/train",
            [{"file_name": "a.jpg", "caption": "a cat", "groundings": {"cat": grounding}}],
        ),
        "gcg-refcocog": (
            "annotations/RefCOCOg_GCG_train.json",
            "images/coco2014/train2014",
            [{"1": {"img_file_name": "a.jpg", "caption": "a cat", "refs": [{"sentence": "cat", "segmentation": box}]}}],
        ),
        "gcg-flickr30k": (
            "annotations/flickr_mergedGT_GCG_train.json",
            "images/flickr30k/Flickr30K",
            {"images": [image, {**image, "id": 6}], "annotations": [annotation, {**annotation, "image_id": 6}]},
        ),
        "osprey": (
            "Osprey-724K/osprey_conversation.json",
            "coco/train2014",
            [{**region, "conversations": turns}],
        ),
    }


def read_whole(name, root):
    talks = open_set(name, root, "train")
    for n in range(len(talks)):
        talk, frames = talks.talk(n), talks.frames(n)
        assert frames is None or frames[0].shape == (*SIZE, 3)
        assert talk.rounds and "".join(one.answer for one in talk.rounds).count("[SEG]") == len(talk.targets)
        assert "".join(one.question for one in talk.rounds).count("<vp></vp>") == len(talk.regions)
        for key in talk.targets + talk.regions:
            assert talks.mask(n, key, SIZE)["size"] == list(SIZE)


@pytest.mark.parametrize("rounds", [40, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["llava", "gcg-grandf", "gcg-refcocog", "gcg-flickr30k", "osprey"])
def test_only_data_errors_come_out(put, square, tmp_path, name, rounds):
    file, folder, content = layouts(square)[name]
    put(f"{folder}/a.jpg", SIZE)
    path = put(file, content)
    read_whole(name, tmp_path)
    random = np.random.default_rng(0)
    refused = []
    for _ in range(rounds):
        path.write_text(json.dumps(spoiled(content, random)), encoding="utf-8")
        try:
            read_whole(name, tmp_path)
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > rounds // 2
    assert all(str(tmp_path) in message and "\n" not in message for message in refused)
