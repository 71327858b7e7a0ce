"""What sets are read into: videos with expressions about them, or talks with masks here and there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Expression:
    """One sentence about one video.

    Attributes:
        id: The expression's key in its file, unique within the video.
        text: The sentence as written by the annotator.
        targets: Keys of the masks whose union is the target; empty means that nothing is meant.
        kind: "referring"; "no-target" where ReVOS, MeViS or gRefCOCO say that nothing is meant; in ReVOS also
            "reasoning".
        tags: Further facts, such as ``{"category": "motion", "distractor": True}``.
    """

    id: str
    text: str
    targets: tuple[str, ...]
    kind: str = "referring"
    tags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Video:
    """One video, or one image as a video of a single frame.

    Attributes:
        name: The video's key in its file, also its folder.
        frames: Frame names without suffix, in the order in which the official code reads them. Sets that say in a
            file per video how many there are read it when they are asked.
        expressions: What is asked about it.
    """

    name: str
    frames: Sequence[str]
    expressions: tuple[Expression, ...]


@dataclass(frozen=True)
class Round:
    """A question and its answer, both plain text without placeholders for pictures.

    Attributes:
        question: Holds ``<vp></vp>`` where a region is pointed at.
        answer: Holds ``[SEG]`` where a mask is given, mostly as ``<p> phrase </p> [SEG]``.
        wordings: Other wordings of the question; each visit draws one of all.
    """

    question: str
    answer: str
    wordings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Talk:
    """A conversation, of which every round sees those before it.

    Attributes:
        name: For messages.
        rounds: At least one.
        targets: A mask key for every ``[SEG]`` of all answers, in their order.
        regions: A mask key for every ``<vp></vp>`` of all questions, in their order.
    """

    name: str
    rounds: tuple[Round, ...]
    targets: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
