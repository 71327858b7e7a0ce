"""The two records every benchmark is read into: a video and the expressions about it."""

from __future__ import annotations

from collections.abc import Mapping
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
        frames: Frame names without suffix, in the order in which the official code reads them.
        expressions: What is asked about it.
    """

    name: str
    frames: tuple[str, ...]
    expressions: tuple[Expression, ...]
