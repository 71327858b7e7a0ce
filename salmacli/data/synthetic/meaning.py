"""What a phrase picks out in a scene, from where things really are, with "cannot be said" as an answer.

Every expression is written only if this module finds exactly its targets, so none is ambiguous.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from salmacli.data.synthetic.scene import Scene, Thing

SIDES = ("left", "right", "above", "below")
ORDERS = ("from the left", "from the right", "from the top", "from the bottom", "biggest", "smallest")


@dataclass(frozen=True)
class Phrase:
    """Attributes that are said; None is left open."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    texture: str | None = None

    def fits(self, thing: Thing) -> bool | None:
        """Whether it describes the thing; None where a size is said of a thing that changes its own."""
        said = (
            (self.colour, thing.colour),
            (self.shape, thing.shape),
            (self.texture, thing.texture),
        )
        if any(word is not None and word != truth for word, truth in said):
            return False
        if self.size is None or self.size == thing.size:
            return True
        return None if thing.size == "changing" else False


@dataclass(frozen=True)
class Meaning:
    """A phrase and at most one further condition.

    Attributes:
        phrase: Attributes of the target.
        motion: One of ``MOTIONS``.
        event: "enters" or "leaves".
        side: Of ``SIDES``, towards ``anchor``.
        anchor: The thing that ``side`` refers to.
        order: One of ``ORDERS``, with ``rank`` counted from 1.
        several: Whether more than one target is meant.
    """

    phrase: Phrase
    motion: str | None = None
    event: str | None = None
    side: str | None = None
    anchor: Phrase | None = None
    order: str | None = None
    rank: int = 1
    several: bool = False


@dataclass(frozen=True)
class Facts:
    """A scene and what is seen of it.

    Attributes:
        scene: N things.
        areas: (N, T) visible pixels.
    """

    scene: Scene
    areas: NDArray[np.int64]

    @classmethod
    def of(cls, scene: Scene, masks: NDArray[np.bool_]) -> Facts:
        """Counts the visible pixels of (N, T, H, W) masks."""
        return cls(scene, masks.sum(axis=(2, 3)))

    @property
    def things(self) -> tuple[Thing, ...]:
        """The scene's, from back to front."""
        return self.scene.things

    def seen(self, index: int) -> bool:
        """Whether enough of a thing shows at some time to speak of it."""
        return bool((self.areas[index] >= 60).sum() >= 4)

    def always(self, indices: Iterable[int]) -> bool:
        """Whether things show in every frame."""
        return bool(np.all(self.areas[list(indices)] >= 40))


def referents(facts: Facts, meaning: Meaning) -> frozenset[int] | None:
    """Indices of the things that are meant; None where people could disagree."""
    fitting = [meaning.phrase.fits(thing) for thing in facts.things]
    if None in fitting:
        return None
    among = [index for index, fits in enumerate(fitting) if fits]
    if meaning.motion is not None:
        return _moving(facts, among, meaning.motion)
    if meaning.event is not None:
        return frozenset(index for index in among if facts.things[index].event == meaning.event)
    if meaning.side is not None and meaning.anchor is not None:
        return _beside(facts, among, meaning.side, meaning.anchor)
    if meaning.order is not None:
        return _ordered(facts, among, meaning.order, meaning.rank)
    return frozenset(among)


def _moving(facts: Facts, among: list[int], motion: str) -> frozenset[int] | None:
    things = facts.things
    # What grows stays in its place as well, and what comes in from the edge shows more and more of itself.
    if motion == "still" and any(things[index].motion == "growing" for index in among):
        return None
    if motion == "growing" and any(things[index].event != "stays" for index in among):
        return None
    return frozenset(index for index in among if things[index].motion == motion)


def _beside(facts: Facts, among: list[int], side: str, anchor: Phrase) -> frozenset[int] | None:
    anchors = [index for index, thing in enumerate(facts.things) if anchor.fits(thing) is not False]
    if len(anchors) != 1 or anchor.fits(facts.things[anchors[0]]) is None:
        return None
    among = [index for index in among if index != anchors[0]]
    if not facts.always([*among, *anchors]):
        return None
    chosen = set()
    for index in among:
        ahead, aside = _offset(facts.things[index], facts.things[anchors[0]], side)
        if np.all(ahead >= 10) and np.all(ahead >= 0.7 * aside):
            chosen.add(index)
        elif not np.all(ahead <= -3):
            return None  # sometimes there, or askew: not for everybody "left of"
    return frozenset(chosen)


def _offset(thing: Thing, anchor: Thing, side: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(T,) pixels by which a thing lies on that side of the anchor, and by which it lies off to its flank."""
    between = anchor.centres - thing.centres
    axis = 0 if side in ("left", "right") else 1
    sign = 1.0 if side in ("left", "above") else -1.0
    return sign * between[:, axis], np.abs(between[:, 1 - axis])


def _ordered(facts: Facts, among: list[int], order: str, rank: int) -> frozenset[int] | None:
    if len(among) < 2 or rank > len(among) or not facts.always(among):
        return None
    keys = np.stack([_key(facts.things[index], order) for index in among])  # (n, T)
    ranking = np.argsort(keys.mean(axis=1))
    before, own, after = np.split(keys[ranking], [rank - 1, rank])
    # All others have to keep their side of the one that is meant, in every frame.
    gap = 0.25 if order in ("biggest", "smallest") else 6.0
    if np.any(before > own - gap) or np.any(after < own + gap):
        return None
    return frozenset([among[int(ranking[rank - 1])]])


def _key(thing: Thing, order: str) -> NDArray[np.float64]:
    """(T,) where a thing stands in an order, the smallest first."""
    if order in ("biggest", "smallest"):
        return np.log(thing.radii) * (-1.0 if order == "biggest" else 1.0)
    axis = 0 if order in ("from the left", "from the right") else 1
    return thing.centres[:, axis] * (1.0 if order in ("from the left", "from the top") else -1.0)


def needs_motion(facts: Facts, meaning: Meaning) -> bool:
    """Whether the expression would be ambiguous without its motion or event."""
    plain = referents(facts, replace(meaning, motion=None, event=None))
    return plain is None or len(plain) > 1


def has_distractor(facts: Facts, targets: Iterable[int]) -> bool:
    """Whether something else in the scene is larger and more vivid than everything that is meant."""
    meant = set(targets)
    if not meant:
        return False
    size = max(facts.things[index].diameter for index in meant)
    salience = max(facts.things[index].salience for index in meant)
    return any(
        thing.diameter >= 1.2 * size and thing.salience >= 1.15 * salience and facts.seen(index)
        for index, thing in enumerate(facts.things)
        if index not in meant
    )
