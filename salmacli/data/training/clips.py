"""What a visit to a sample reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from salmacli.data.conversation import Turn


@dataclass(frozen=True)
class Clip:
    """One visit to one sample: what is shown, what is said about it, and what it is to segment.

    Attributes:
        name: set and sample; unique in the mix.
        shown: what the LLM sees, K times uint8 (H, W, 3): frames of a video or one picture; none of nothing.
        frames: D times uint8 (H, W, 3) to segment, in the order of time; none where nothing is to be segmented.
        dialogues: what is said; they do not see each other, the turns of one do.
        targets: per `[SEG]` of all answers, in their order, a set of mask keys; equal sets are the same object.
        masks: (O, D, H, W) bool.
        foreground: (D, H, W) bool, everything in these frames that some expression, or phrase, of the sample means.
        regions: (R, H, W) bool, what the questions point at in the first picture, in their order.
        scene: what shows the objects: clips of one scene and one set of mask keys show the same object, whichever
            member of the mix they come from; empty: this sample alone does.
        still: whether a picture is shown, not a video.
        seed: of all that is drawn further on.
    """

    name: str
    shown: tuple[np.ndarray, ...]
    frames: tuple[np.ndarray, ...]
    dialogues: tuple[tuple[Turn, ...], ...]
    targets: tuple[tuple[str, ...], ...]
    masks: np.ndarray
    foreground: np.ndarray
    regions: tuple[np.ndarray, ...] = ()
    still: bool = False
    seed: int = 0
    scene: str = ""


@dataclass(frozen=True)
class BadClip:
    """A visit that could not be read, and why."""

    name: str
    reason: str
