"""Stories written down in the official layouts of the video sets, frame names, key types and all.

Frames are stored once, in the MeViS folder, and hard-linked from the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from salmacli.data import rle
from salmacli.data.synthetic.files import MEVIS_SPLITS, Stories, dump_json, dump_pickle, frames_folder, link_video
from salmacli.data.synthetic.pictures import write_own, write_refcoco
from salmacli.data.synthetic.scene import HEIGHT, WIDTH
from salmacli.data.synthetic.video import FRAME_NAMES, Sentence, Story

OWN_IMAGES = 100
_PALETTE = (0, 0, 0, 200, 30, 30, 30, 160, 40, 210, 190, 40, 30, 60, 210, 160, 40, 170, 40, 180, 180)


def write_layouts(root: Path, stories: Stories) -> None:
    """Writes everything but the frames of MeViS, which are there already."""
    write_mevis(root, stories)
    write_revos(root, stories)
    write_davis(root, stories["held_out"])
    write_refytvos(root, stories)
    write_refcoco(root, stories)
    write_own(root, stories["train"][:OWN_IMAGES])


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
        dump_json(root / "mevis" / folder / "meta_expressions.json", {"videos": videos})
        dump_json(root / "mevis" / folder / "mask_dict.json", masks)


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
            link_video(frames_folder(root, split) / story.name, root / "revos" / story.name)
        dump_json(root / "revos" / f"meta_expressions_{file}.json", {"videos": videos})
    dump_json(root / "revos" / "mask_dict.json", masks)
    dump_json(root / "revos" / "mask_dict_foreground.json", foreground)


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
        link_video(frames_folder(root, "held_out") / story.name, top / "valid" / "JPEGImages" / story.name)
    dump_json(top / "meta_expressions" / "valid" / "meta_expressions.json", {"videos": videos})
    dump_pickle(top / "valid" / "mask_dict.pkl", masks)


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
            link_video(frames_folder(root, split) / story.name, top / folder / "JPEGImages" / story.name)
        dump_json(top / "meta_expressions" / folder / "meta_expressions.json", {"videos": videos})
    dump_pickle(top / "mask_dict.pkl", masks)


def _rvos_entry(sentence: Sentence, split: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"exp": sentence.text, "tags": sentence.tags}
    if split == "train":
        entry["obj_id"] = str(sentence.targets[0] + 1)
    return entry


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
