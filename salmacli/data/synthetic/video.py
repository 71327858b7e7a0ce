"""One synthetic video: drawn, written as frames, and described for all layouts."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from salmacli.data import rle
from salmacli.data.synthetic.expressions import Spoken, annotators, draw_expressions
from salmacli.data.synthetic.meaning import Facts, has_distractor
from salmacli.data.synthetic.polygons import outline
from salmacli.data.synthetic.questions import draw_questions
from salmacli.data.synthetic.render import render
from salmacli.data.synthetic.scene import FRAMES, HELD_OUT, PAIRS, SEEN, Scene, draw_scene

SPLITS = ("train", "valid", "held_out")
FRAME_NAMES = tuple(f"{index:05d}" for index in range(FRAMES))


@dataclass(frozen=True)
class Sentence:
    """An expression with what the layouts keep of it.

    Attributes:
        text: Lower case.
        targets: Indices of things.
        tags: What goes into the files beside the official keys.
        moving: Whether it speaks of motion, which one picture does not show.
    """

    text: str
    targets: tuple[int, ...]
    tags: dict[str, Any]
    moving: bool


@dataclass(frozen=True)
class Described:
    """A thing in the words of four annotators."""

    thing: int
    wordings: tuple[str, ...]
    distractor: bool


@dataclass(frozen=True)
class Story:
    """A finished video as the layouts need it.

    Attributes:
        name: Its folder.
        masks: N things of T frames each, an RLE or None where nothing of the thing shows.
        foreground: T RLEs of everything together.
        sentences: For MeViS and others.
        questions: For ReVOS.
        annotators: Things that attributes single out, for Ref-DAVIS and own data.
        still: The frame that RefCOCO and own data use.
        outlines: N outlines in frame ``still``, each polygons; empty where the thing is not there.
    """

    name: str
    masks: tuple[tuple[rle.RLE | None, ...], ...]
    foreground: tuple[rle.RLE, ...]
    sentences: tuple[Sentence, ...]
    questions: tuple[Sentence, ...]
    annotators: tuple[Described, ...]
    still: int
    outlines: tuple[list[list[float]], ...]


def scene_of(seed: int, split: str, index: int) -> tuple[Scene, np.random.Generator]:
    """The scene of a video, and the generator to go on with. Depends on nothing but its arguments."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    return draw_scene(rng, split == "held_out"), rng


def make_video(seed: int, split: str, index: int, folder: Path) -> Story:
    """Draws a video and writes its frames as ``folder/<name>/<frame>.jpg``."""
    scene, rng = scene_of(seed, split, index)
    drawn = render(scene)
    facts = Facts.of(scene, drawn.masks)
    name = f"{split.replace('_', '')}{index:04d}"
    (folder / name).mkdir(parents=True)
    for frame, picture in zip(FRAME_NAMES, drawn.frames, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        (folder / name / f"{frame}.jpg").write_bytes(buffer.getvalue())

    held_out = split == "held_out"
    allowed, said = frozenset(HELD_OUT if held_out else SEEN), frozenset(PAIRS if held_out else SEEN)
    spoken = draw_expressions(rng, facts, int(rng.integers(6, 9)), allowed, said)
    eligible = [i for i, thing in enumerate(scene.things) if thing.pair in allowed and facts.seen(i)]
    questions = draw_questions(rng, facts, eligible, 3)
    people = [(target, annotators(rng, facts, target)) for target in eligible]
    still = int(np.argmax(np.minimum(facts.areas, 60).sum(axis=0)))
    return Story(
        name=name,
        masks=tuple(tuple(rle.encode(mask) if mask.any() else None for mask in thing) for thing in drawn.masks),
        foreground=tuple(rle.encode(mask) for mask in np.asarray(drawn.masks.any(axis=0))),
        sentences=tuple(_sentence(one) for one in spoken),
        questions=tuple(_sentence(one) for one in questions),
        annotators=tuple(
            Described(target, tuple(words), has_distractor(facts, [target]))
            for target, words in people
            if words is not None
        ),
        still=still,
        outlines=tuple(outline(mask) for mask in drawn.masks[:, still]),
    )


def _sentence(spoken: Spoken) -> Sentence:
    tags = {"category": spoken.category, "distractor": spoken.distractor}
    moving = spoken.meaning.motion is not None or spoken.meaning.event is not None
    return Sentence(spoken.text, spoken.targets, tags, moving)
