"""Stories written down as sets of pictures: the RefCOCO family, and a user's own data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from salmacli.data import rle
from salmacli.data.synthetic.files import Stories, dump_json, dump_pickle, frames_folder, link
from salmacli.data.synthetic.scene import HEIGHT, WIDTH
from salmacli.data.synthetic.video import FRAME_NAMES, SPLITS, Sentence, Story

_REFERENCES = {
    "refcoco": "refs(unc).p",
    "refcoco+": "refs(unc).p",
    "refcocog": "refs(umd).p",
    "grefcoco": "grefs(unc).json",
}
_SPLITS = {"train": ("train",), "valid": ("val",), "held_out": ("testA", "testB")}


def write_refcoco(root: Path, stories: Stories) -> None:
    """One frame per video as the picture, for RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO.

    ``testA`` is the held-out split, ``testB`` its expressions with a salient distractor; RefCOCO+ drops what
    speaks of places, as the real one does. Only gRefCOCO has expressions with several targets or none.
    """
    top = root / "refcoco"
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: dict[str, list[dict[str, Any]]] = {name: [] for name in _REFERENCES}
    for split, story in [(one, story) for one in SPLITS for story in stories[one]]:
        image_id = len(images) + 1
        file = f"COCO_train2014_{image_id:012d}.jpg"
        link(_still(root, split, story), top / "coco2014" / "train2014" / file)
        images.append({"id": image_id, "file_name": file, "height": HEIGHT, "width": WIDTH})
        ann_ids = {}
        for target, polygons in enumerate(story.outlines):
            if polygons:
                ann_ids[target] = len(annotations) + 1
                annotations.append(_annotation(story, target, image_id, ann_ids[target]))
        for sentence in story.sentences:
            # Motion cannot be seen in one picture.
            if sentence.moving or not ann_ids.keys() >= set(sentence.targets):
                continue
            image = {"image_id": image_id, "file_name": file}
            for name, part in _places(sentence, split):
                refs[name].append(_reference(len(refs[name]), name, part, sentence, ann_ids, image))
    categories = [{"id": 1, "name": "object", "supercategory": "object"}]
    for name, entries in refs.items():
        path = top / "ref_seg" / name / _REFERENCES[name]
        (dump_json if path.suffix == ".json" else dump_pickle)(path, entries)
        instances = {"images": images, "annotations": annotations, "categories": categories}
        dump_json(path.with_name("instances.json"), instances)


def _places(sentence: Sentence, split: str) -> Iterator[tuple[str, str]]:
    """The sets and splits that have a sentence."""
    for part in _SPLITS[split]:
        if part == "testB" and not sentence.tags["distractor"]:
            continue
        yield "grefcoco", part
        if len(sentence.targets) == 1:
            yield "refcoco", part
            if sentence.tags["category"] == "attribute":
                yield "refcoco+", part
            if part != "testB":
                yield "refcocog", "test" if part == "testA" else part


def _reference(
    number: int,
    name: str,
    split: str,
    sentence: Sentence,
    ann_ids: Mapping[int, int],
    image: Mapping[str, Any],
) -> dict[str, Any]:
    said = {"sent_id": number, "raw": sentence.text, "sent": sentence.text, "tokens": sentence.text.split()}
    entry = {
        "ann_id": [ann_ids[target] for target in sentence.targets],
        **image,
        "ref_id": number,
        "category_id": [1] * len(sentence.targets),
        "split": split,
        "sent_ids": [number],
        "sentences": [said],
        "tags": sentence.tags,
    }
    if name != "grefcoco":
        return {**entry, "ann_id": entry["ann_id"][0], "category_id": 1}
    if not sentence.targets:
        entry.update(ann_id=[-1], category_id=[-1])
    return {**entry, "no_target": not sentence.targets}


def _annotation(story: Story, target: int, image_id: int, ann_id: int) -> dict[str, Any]:
    mask = rle.decode(story.masks[target][story.still] or {})
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": [float(side) for side in box],
        "segmentation": story.outlines[target],
    }


def write_own(root: Path, stories: Sequence[Story]) -> None:
    """A user's own pictures: ``annotations.json`` and ``images/``, one text per object."""
    entries: list[dict[str, Any]] = []
    for story in stories:
        shown = [described for described in story.annotators if story.outlines[described.thing]]
        if not shown:
            continue
        file = f"{story.name}.jpg"
        link(_still(root, "train", story), root / "own" / "images" / file)
        masks = [story.outlines[described.thing] for described in shown]
        entries.append({"image": file, "mask": masks, "text": [described.wordings[0] for described in shown]})
    dump_json(root / "own" / "annotations.json", entries)


def _still(root: Path, split: str, story: Story) -> Path:
    return frames_folder(root, split) / story.name / f"{FRAME_NAMES[story.still]}.jpg"
