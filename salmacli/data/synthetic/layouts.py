"""Stories written down in the official layouts of the real benchmarks, frame names, key types and all.

Frames are stored once, in the MeViS folder, and hard-linked from the others.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from salmacli.config.files import write_atomic
from salmacli.data import rle
from salmacli.data.synthetic.scene import HEIGHT, WIDTH
from salmacli.data.synthetic.video import FRAME_NAMES, SPLITS, Sentence, Story

FOLDERS = {
    "mevis": "mevis",
    "revos": "revos",
    "davis": "davis17",
    "refytvos": "rvos",
    "refcoco": "refcoco",
    "own": "own",
}
MEVIS_SPLITS = {"train": "train", "valid": "valid", "held_out": "valid_u"}
OWN_IMAGES = 100
_PALETTE = (0, 0, 0, 200, 30, 30, 30, 160, 40, 210, 190, 40, 30, 60, 210, 160, 40, 170, 40, 180, 180)

Stories = Mapping[str, Sequence[Story]]


def write_layouts(root: Path, stories: Stories) -> None:
    """Writes everything but the frames of MeViS, which are there already."""
    write_mevis(root, stories)
    write_revos(root, stories)
    write_davis(root, stories["held_out"])
    write_refytvos(root, stories)
    write_refcoco(root, stories)
    write_own(root, stories["train"][:OWN_IMAGES])


def frames_folder(root: Path, split: str) -> Path:
    """Where the frames of a split lie."""
    return root / "mevis" / MEVIS_SPLITS[split] / "JPEGImages"


def write_mevis(root: Path, stories: Stories) -> None:
    """``<split>/{meta_expressions.json, mask_dict.json}``, masks by a number that runs through the split."""
    for split, folder in MEVIS_SPLITS.items():
        videos: dict[str, Any] = {}
        masks: dict[str, Any] = {}
        for vid_id, story in enumerate(stories[split]):
            first = len(masks)
            masks.update({str(first + index): list(thing) for index, thing in enumerate(story.masks)})
            expressions = {
                str(index): {
                    "exp": sentence.text,
                    "obj_id": list(sentence.targets),
                    "anno_id": [first + target for target in sentence.targets],
                    "tags": sentence.tags,
                }
                for index, sentence in enumerate(story.sentences)
            }
            videos[story.name] = {"expressions": expressions, "vid_id": vid_id, "frames": list(FRAME_NAMES)}
        _write_json(root / "mevis" / folder / "meta_expressions.json", {"videos": videos})
        _write_json(root / "mevis" / folder / "mask_dict.json", masks)


def write_revos(root: Path, stories: Stories) -> None:
    """Two expression files over one ``mask_dict.json``; types 0 referring, 1 reasoning, 2 no target."""
    masks: dict[str, Any] = {}
    foreground: dict[str, Any] = {}
    for split, file in (("train", "train_"), ("held_out", "valid_")):
        videos: dict[str, Any] = {}
        for story in stories[split]:
            first = len(masks)
            masks.update({str(first + index): list(thing) for index, thing in enumerate(story.masks)})
            foreground[story.name] = {"masks_rle": list(story.foreground)}
            referring = [s for s in story.sentences if s.targets][:4]
            nothing = [s for s in story.sentences if not s.targets][:1]
            typed = [(s, 0) for s in referring] + [(s, 1) for s in story.questions] + [(s, 2) for s in nothing]
            expressions = {
                str(index): {
                    "exp": sentence.text,
                    "obj_id": list(sentence.targets),
                    "anno_id": [first + target for target in sentence.targets],
                    "type_id": kind,
                    "tags": sentence.tags,
                }
                for index, (sentence, kind) in enumerate(typed)
            }
            videos[story.name] = {
                "expressions": expressions,
                "frames": list(FRAME_NAMES),
                "height": HEIGHT,
                "width": WIDTH,
            }
            _link_video(frames_folder(root, split) / story.name, root / "revos" / story.name)
        _write_json(root / "revos" / f"meta_expressions_{file}.json", {"videos": videos})
    _write_json(root / "revos" / "mask_dict.json", masks)
    _write_json(root / "revos" / "mask_dict_foreground.json", foreground)


def write_davis(root: Path, stories: Sequence[Story]) -> None:
    """Four annotators per object, expression number object * 4 + annotator.

    Masks are there both as the pickle of later work and as the official annotations, in which a pixel is its
    object's number.
    """
    top = root / "davis17"
    videos: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    for story in sorted((s for s in stories if s.annotators), key=lambda story: story.name):
        expressions = {}
        for number, described in enumerate(story.annotators):
            tags = {"category": "attribute", "distractor": described.distractor}
            for annotator, text in enumerate(described.wordings):
                expressions[str(number * 4 + annotator)] = {
                    "exp": text,
                    "obj_id": str(number + 1),
                    "tags": tags,
                }
        videos[story.name] = {"expressions": expressions, "frames": list(FRAME_NAMES)}
        for key in sorted(expressions):
            masks[str(len(masks))] = list(story.masks[story.annotators[int(key) // 4].thing])
        objects = [story.masks[described.thing] for described in story.annotators]
        _write_annotations(top / "valid" / "Annotations" / story.name, objects)
        _link_video(frames_folder(root, "held_out") / story.name, top / "valid" / "JPEGImages" / story.name)
    _write_json(top / "meta_expressions" / "valid" / "meta_expressions.json", {"videos": videos})
    _write_pickle(top / "valid" / "mask_dict.pkl", masks)


def write_refytvos(root: Path, stories: Stories) -> None:
    """One object per expression.

    The masks of ``train`` go by the running number of the expression; those of ``valid`` are kept back, as
    the organisers of the real set do.
    """
    top = root / "rvos"
    masks: dict[str, Any] = {}
    for split, folder in (("train", "train"), ("held_out", "valid")):
        videos: dict[str, Any] = {}
        for story in stories[split]:
            single = [sentence for sentence in story.sentences if len(sentence.targets) == 1]
            if not single:
                continue
            expressions = {str(index): _rvos_entry(one, split) for index, one in enumerate(single)}
            videos[story.name] = {"expressions": expressions, "frames": list(FRAME_NAMES)}
            if split == "train":
                for key in sorted(expressions):
                    masks[str(len(masks))] = list(story.masks[single[int(key)].targets[0]])
            _link_video(frames_folder(root, split) / story.name, top / folder / "JPEGImages" / story.name)
        _write_json(top / "meta_expressions" / folder / "meta_expressions.json", {"videos": videos})
    _write_pickle(top / "mask_dict.pkl", masks)


def _rvos_entry(sentence: Sentence, split: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"exp": sentence.text, "tags": sentence.tags}
    if split == "train":
        entry["obj_id"] = str(sentence.targets[0] + 1)
    return entry


def write_refcoco(root: Path, stories: Stories) -> None:
    """One frame per video as the picture.

    ``testA`` is the held-out split, ``testB`` its expressions with a salient distractor; RefCOCO+ drops what
    speaks of places, as the real one does.
    """
    top = root / "refcoco"
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: dict[str, list[dict[str, Any]]] = {"refcoco": [], "refcoco+": [], "refcocog": []}
    for split, story in [(one, story) for one in SPLITS for story in stories[one]]:
        image_id = len(images) + 1
        file = f"COCO_train2014_{image_id:012d}.jpg"
        _link(_still(root, split, story), top / "coco2014" / "train2014" / file)
        images.append({"id": image_id, "file_name": file, "height": HEIGHT, "width": WIDTH})
        ann_ids = {}
        for target, polygons in enumerate(story.outlines):
            if polygons:
                ann_ids[target] = len(annotations) + 1
                annotations.append(_annotation(story, target, image_id, ann_ids[target]))
        for sentence in story.sentences:
            # Motion cannot be seen in one picture.
            if (
                len(sentence.targets) != 1
                or sentence.targets[0] not in ann_ids
                or sentence.tags["category"] == "motion"
            ):
                continue
            names = {"train": ["train"], "valid": ["val"], "held_out": ["testA"]}[split]
            if split == "held_out" and sentence.tags["distractor"]:
                names.append("testB")
            for name in names:
                ref = {"ann_id": ann_ids[sentence.targets[0]], "image_id": image_id, "file_name": file}
                _add_ref(refs["refcoco"], ref, sentence, name)
                if sentence.tags["category"] == "attribute":
                    _add_ref(refs["refcoco+"], ref, sentence, name)
                if name != "testB":
                    _add_ref(refs["refcocog"], ref, sentence, "test" if name == "testA" else name)
    categories = [{"id": 1, "name": "object", "supercategory": "object"}]
    for name, entries in refs.items():
        by = "umd" if name == "refcocog" else "unc"
        _write_pickle(top / "ref_seg" / name / f"refs({by}).p", entries)
        instances = {"images": images, "annotations": annotations, "categories": categories}
        _write_json(top / "ref_seg" / name / "instances.json", instances)


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


def _add_ref(refs: list[dict[str, Any]], ref: dict[str, Any], sentence: Sentence, split: str) -> None:
    number = len(refs)
    said = {"sent_id": number, "raw": sentence.text, "sent": sentence.text, "tokens": sentence.text.split()}
    entry = {"ref_id": number, "category_id": 1, "split": split, "sent_ids": [number], "sentences": [said]}
    refs.append({**ref, **entry, "tags": sentence.tags})


def write_own(root: Path, stories: Sequence[Story]) -> None:
    """A user's own pictures: ``annotations.json`` and ``images/``, one text per object."""
    entries: list[dict[str, Any]] = []
    for story in stories:
        shown = [described for described in story.annotators if story.outlines[described.thing]]
        if not shown:
            continue
        file = f"{story.name}.jpg"
        _link(_still(root, "train", story), root / "own" / "images" / file)
        masks = [story.outlines[described.thing] for described in shown]
        entries.append({"image": file, "mask": masks, "text": [described.wordings[0] for described in shown]})
    _write_json(root / "own" / "annotations.json", entries)


def _still(root: Path, split: str, story: Story) -> Path:
    return frames_folder(root, split) / story.name / f"{FRAME_NAMES[story.still]}.jpg"


def _write_annotations(folder: Path, objects: Sequence[Iterable[rle.RLE | None]]) -> None:
    numbers = np.zeros((len(FRAME_NAMES), HEIGHT, WIDTH), dtype=np.uint8)
    for number, thing in enumerate(objects, start=1):
        for frame, mask in enumerate(thing):
            if mask is not None:
                numbers[frame][rle.decode(mask)] = number
    folder.mkdir(parents=True)
    for name, plane in zip(FRAME_NAMES, numbers, strict=True):
        picture = Image.fromarray(plane, mode="P")
        picture.putpalette(_PALETTE)
        picture.save(folder / f"{name}.png")


def _link_video(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for frame in FRAME_NAMES:
        _link(source / f"{frame}.jpg", target / f"{frame}.jpg")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _write_json(path: Path, obj: Any) -> None:
    write_atomic(path, json.dumps(obj, separators=(",", ":")))


def _write_pickle(path: Path, obj: Any) -> None:
    # Through JSON first: a pickle's bytes depend on which equal strings are one object in memory, and that
    # differs with the number of processes.
    write_atomic(path, pickle.dumps(json.loads(json.dumps(obj)), protocol=4))
