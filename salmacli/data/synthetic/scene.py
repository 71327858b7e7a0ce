"""What happens in a synthetic video: things with a look, and the way each takes through the clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH, FRAMES = 120, 160, 12

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (228, 30, 36),
    "green": (30, 172, 56),
    "blue": (40, 84, 240),
    "yellow": (252, 226, 36),
    "purple": (150, 46, 214),
    "cyan": (40, 214, 224),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
TEXTURES = ("plain", "striped", "dotted")
MOTIONS = ("still", "left", "right", "up", "down", "circling", "growing")
_MOTION_WEIGHTS = (0.20, 0.135, 0.135, 0.135, 0.135, 0.12, 0.14)
_STEPS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}

Pair = tuple[str, str]
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for shape in SHAPES for colour in COLOURS)
# One colour per shape, each another: in training every shape still comes in all colours but one, and every colour in
# all shapes but one, so that nothing but their combination is new.
HELD_OUT: tuple[Pair, ...] = tuple(zip(COLOURS, SHAPES, strict=True))
SEEN: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT)


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        colour, shape, texture: What it looks like.
        size: "small", "big", or "changing" for a growing thing, of which neither can be said.
        motion: One of ``MOTIONS``.
        event: "enters" or "leaves" the picture during the clip, or "stays".
        vivid: 0 (dull and dark) to 1 (saturated and bright).
        angle: Rotation in radians.
        centres: (T, 2), x and y in pixels.
        radii: (T,), half the diameter in pixels.
    """

    colour: str
    shape: str
    texture: str
    size: str
    motion: str
    event: str
    vivid: float
    angle: float
    centres: NDArray[np.float64]
    radii: NDArray[np.float64]

    @property
    def pair(self) -> Pair:
        """Colour and shape, what the splits are made by."""
        return self.colour, self.shape

    @property
    def paint(self) -> NDArray[np.float64]:
        """(3,) the colour as painted, RGB 0..255."""
        pure = np.array(COLOURS[self.colour], dtype=np.float64)
        mean = pure.mean()
        saturation, value = 0.6 + 0.4 * self.vivid, 0.7 + 0.3 * self.vivid
        return np.asarray((mean + (pure - mean) * saturation) * value)

    @property
    def salience(self) -> float:
        """Saturation times value of the paint, 0..1."""
        return float(self.paint.max() - self.paint.min()) / 255.0

    @property
    def diameter(self) -> float:
        """Mean over the clip, pixels."""
        return float(2 * self.radii.mean())


@dataclass(frozen=True)
class Scene:
    """Things from back to front on a background.

    Attributes:
        things: Later ones hide earlier ones.
        background: Seed of the background's own generator.
    """

    things: tuple[Thing, ...]
    background: int


def draw_scene(rng: np.random.Generator, held_out: bool) -> Scene:
    """Draws a scene of 2 to 6 things.

    Args:
        rng: Source of all chance.
        held_out: Whether most things are of the pairs that training never shows; otherwise none is.
    """
    count = int(rng.choice([2, 3, 4, 5, 6], p=[0.10, 0.28, 0.32, 0.20, 0.10]))
    salient = int(rng.integers(count)) if rng.random() < 0.62 else -1
    things: list[Thing] = []
    for index, pair in enumerate(_draw_pairs(rng, count, held_out)):
        thing = _place(rng, pair, things, _look(rng, index == salient, salient >= 0, count))
        if thing is not None:
            things.append(thing)
    if len(things) < 2:
        return draw_scene(rng, held_out)
    order = rng.permutation(len(things))
    return Scene(tuple(things[i] for i in order), int(rng.integers(2**31)))


def _draw_pairs(rng: np.random.Generator, count: int, held_out: bool) -> list[Pair]:
    """Draws the pairs of a scene, nearly always distinct.

    Shapes and colours recur now and then: only then are ordinals and motion needed to tell things apart.
    """
    pairs: list[Pair] = []
    while len(pairs) < count:
        pool = HELD_OUT if held_out and (not pairs or rng.random() < 0.7) else SEEN
        if pairs and rng.random() < 0.55:
            colour, shape = pairs[int(rng.integers(len(pairs)))]
            same = 1 if rng.random() < 0.68 else 0
            kin = [pair for pair in pool if pair[same] == (colour, shape)[same] and pair not in pairs]
            pool = tuple(kin or [pair for pair in SEEN if pair[same] == (colour, shape)[same]])
        pair = pool[int(rng.integers(len(pool)))]
        if pair not in pairs or rng.random() < 0.06:
            pairs.append(pair)
    return pairs


@dataclass(frozen=True)
class _Look:
    size: str
    radius: float
    vivid: float
    texture: str


def _look(rng: np.random.Generator, is_salient: bool, has_salient: bool, count: int) -> _Look:
    """A salient thing is big and vivid, and the others of its scene are then mostly small and all dull."""
    big = is_salient or rng.random() < (0.18 if has_salient else (0.5 if count < 5 else 0.35))
    if is_salient:
        radius, vivid = rng.uniform(23.5, 26.0), 1.0
    else:
        radius = rng.uniform(18.5, 21.5) if big else rng.uniform(12.0, 14.5)
        vivid = rng.uniform(0.2, 0.55) if has_salient else rng.uniform(0.75, 1.0)
    texture = TEXTURES[int(rng.choice(3, p=[0.5, 0.25, 0.25]))]
    return _Look("big" if big else "small", float(radius), float(vivid), texture)


def _place(rng: np.random.Generator, pair: Pair, others: Sequence[Thing], look: _Look) -> Thing | None:
    """Finds a way for a thing that never hides, nor is hidden, by more than a moderate part."""
    for _ in range(60):
        motion = MOTIONS[int(rng.choice(len(MOTIONS), p=_MOTION_WEIGHTS))]
        event = "stays"
        if motion in _STEPS and rng.random() < 0.32:
            event = "enters" if rng.random() < 0.5 else "leaves"
        radii = np.full(FRAMES, look.radius)
        if motion == "growing":
            end = look.radius if look.size == "big" else min(look.radius * 1.85, 25.0)
            radii = np.linspace(end / 1.85, end, FRAMES)
        centres = _way(rng, motion, event, float(radii[-1]))
        if centres is None or any(_collide(centres, radii, other) for other in others):
            continue
        size = "changing" if motion == "growing" else look.size
        angle = float(rng.uniform(-0.25, 0.25))
        return Thing(*pair, look.texture, size, motion, event, look.vivid, angle, centres, radii)
    return None


def _collide(centres: NDArray[np.float64], radii: NDArray[np.float64], other: Thing) -> bool:
    reach = np.hypot(*(centres - other.centres).T) / (radii + other.radii)
    return bool(reach.min() < 0.66 or np.mean(reach < 1.0) > 0.5)


def _way(rng: np.random.Generator, motion: str, event: str, radius: float) -> NDArray[np.float64] | None:
    """(T, 2) centres, or None where this motion does not fit a thing of this radius."""
    margin = radius * 0.9
    low, high = np.array([margin, margin]), np.array([WIDTH - margin, HEIGHT - margin])
    if motion in ("still", "growing"):
        return np.tile(rng.uniform(low, high), (FRAMES, 1))
    if motion == "circling":
        around = rng.uniform(14.0, 19.0)
        if np.any(high - low < 2 * around):
            return None
        turns = rng.choice([-1.0, 1.0]) * rng.uniform(0.92, 1.0) * 2 * np.pi
        phase = rng.uniform(0, 2 * np.pi) + np.linspace(0, turns, FRAMES)
        centre = rng.uniform(low + around, high - around)
        return np.asarray(centre + around * np.stack([np.cos(phase), np.sin(phase)], axis=1))
    return _straight(rng, motion, event, (low, high), radius)


def _straight(
    rng: np.random.Generator,
    motion: str,
    event: str,
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]],
    radius: float,
) -> NDArray[np.float64] | None:
    low, high = bounds
    step = np.array(_STEPS[motion])
    axis = 0 if step[0] else 1
    reach = float((high - low)[axis])
    length = rng.uniform(46.0, 80.0) if axis == 0 else rng.uniform(44.0, 66.0)
    start = rng.uniform(low, high)
    if event == "stays":
        if length > reach:
            return None
        room = rng.uniform(0, reach - length)
        start[axis] = low[axis] + room if step[axis] > 0 else high[axis] - room
    else:
        gap = radius + rng.uniform(2.0, 22.0)  # how far outside it starts or ends: absent for some frames
        length += radius + gap
        near, far = -gap, (WIDTH, HEIGHT)[axis] + gap
        first = near if (event == "enters") == (step[axis] > 0) else far  # the end that lies outside
        inner = first + length if first == near else first - length
        if not low[axis] <= inner <= high[axis]:
            return None
        start[axis] = first if event == "enters" else inner
    drift = np.zeros(2)
    drift[1 - axis] = rng.uniform(-5.0, 5.0)
    return np.asarray(start + np.linspace(0, 1, FRAMES)[:, None] * (step * length + drift))
