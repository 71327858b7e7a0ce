"""Scenes to pictures and masks, vectorised over the frames of a thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salmacli.data.synthetic.scene import FRAMES, HEIGHT, WIDTH, Scene, Thing

Floats = NDArray[np.floating[Any]]

_GROUNDS = ((96, 94, 90), (122, 108, 88), (78, 92, 78), (120, 130, 140), (66, 70, 84), (150, 144, 132))


@dataclass(frozen=True)
class Rendered:
    """A drawn scene.

    Attributes:
        frames: (T, H, W, 3) uint8, RGB.
        masks: (N, T, H, W) booleans, the visible part of each thing; no pixel belongs to two.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]


def render(scene: Scene) -> Rendered:
    """Draws all frames of a scene."""
    rng = np.random.default_rng(scene.background)
    frames = np.repeat(_background(rng)[None], FRAMES, axis=0)
    masks = np.zeros((len(scene.things), FRAMES, HEIGHT, WIDTH), dtype=np.bool_)
    for index, thing in enumerate(scene.things):
        _draw(thing, frames, masks, index)
    grain = rng.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32) * np.float32(2.5)
    for frame in frames:  # moved about rather than drawn anew, which would be half of all the time
        frame += np.roll(grain, tuple(rng.integers(0, 100, 2)), axis=(0, 1))
    return Rendered(np.clip(frames + 0.5, 0, 255).astype(np.uint8), masks)


def _draw(thing: Thing, frames: Floats, masks: NDArray[np.bool_], index: int) -> None:
    half = int(np.ceil(thing.radii.max())) + 3
    corners = np.floor(thing.centres).astype(np.int64) - half  # (T, 2)
    steps = np.arange(2 * half + 1, dtype=np.float32)
    x = steps[None, None, :] + (corners[:, 0] - thing.centres[:, 0] + 0.5).astype(np.float32)[:, None, None]
    y = steps[None, :, None] + (corners[:, 1] - thing.centres[:, 1] + 0.5).astype(np.float32)[:, None, None]
    radii = thing.radii.astype(np.float32)[:, None, None]
    cos, sin = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    u, v = (cos * x + sin * y) / radii, (cos * y - sin * x) / radii  # (T, s, s), 1 = the radius
    distance = _distance(thing.shape, u, v) * radii  # pixels, negative inside
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    paint = _paint(thing, u, v, distance)
    for frame in range(FRAMES):
        left, top = (int(value) for value in corners[frame])
        rows, columns = (
            slice(max(top, 0), min(top + len(steps), HEIGHT)),
            slice(max(left, 0), min(left + len(steps), WIDTH)),
        )
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        alpha, target = cover[frame][inside], frames[frame, rows, columns]
        target += alpha * (paint[frame][inside] - target)
        covered = distance[frame][inside] <= 0
        masks[:index, frame, rows, columns] &= ~covered
        masks[index, frame, rows, columns] = covered


def _distance(shape: str, u: Floats, v: Floats) -> Floats:
    """Signed distance to the outline in units of the radius, negative inside; exact near straight edges."""
    if shape == "circle":
        return np.asarray(np.hypot(u, v) - 1)
    if shape == "ring":
        return np.asarray(np.abs(np.hypot(u, v) - np.float32(0.75)) - np.float32(0.25))
    if shape == "square":
        return np.asarray(np.maximum(np.abs(u), np.abs(v)) - np.float32(0.86))
    if shape == "triangle":
        sides = np.float32(0.866) * np.abs(u) - np.float32(0.5) * v - np.float32(0.5)
        return np.asarray(np.maximum(v - np.float32(0.72), sides))
    if shape == "cross":
        wide = np.maximum(np.abs(u) - 1, np.abs(v) - np.float32(0.34))
        tall = np.maximum(np.abs(v) - 1, np.abs(u) - np.float32(0.34))
        return np.asarray(np.minimum(wide, tall))
    # Star: fold the plane onto one half of one of the five points, whose outline is a single straight edge.
    sector = np.float32(2 * np.pi / 5)
    folded = np.abs(np.mod(np.arctan2(u, -v) + sector / 2, sector) - sector / 2)
    length = np.hypot(u, v)
    beyond = length * np.cos(folded) - np.float32(1.12)
    return np.asarray(np.float32(0.368) * beyond + np.float32(0.93) * length * np.sin(folded))


def _paint(thing: Thing, u: Floats, v: Floats, distance: Floats) -> Floats:
    """(T, s, s, 3) surface: the texture turns and grows with the thing, light falls from the upper left."""
    base = thing.paint.astype(np.float32)
    light = (1 - np.float32(0.10) * (u + v))[..., None]
    surface = base * light
    if thing.texture == "striped":
        stripes = np.mod(u * np.float32(2.4) + v * np.float32(0.9), 1) < 0.42
        surface = np.where(stripes[..., None], surface * np.float32(0.55), surface)
    elif thing.texture == "dotted":
        across, down = np.mod(u * 2.6 + 0.5, 1) - 0.5, np.mod(v * 2.6 + 0.5, 1) - 0.5
        dots = (np.hypot(across, down) < 0.27)[..., None]
        surface = np.where(dots, surface * np.float32(0.25) + np.float32(180), surface)
    rim = (distance > -1.6)[..., None]
    return np.asarray(np.where(rim, surface * np.float32(0.6), surface), dtype=np.float32)


def _background(rng: np.random.Generator) -> Floats:
    """(H, W, 3) two dull colours mixed by smooth noise, with one of four surfaces on top."""
    first, second = (np.array(_GROUNDS[i], dtype=np.float32) for i in rng.permutation(len(_GROUNDS))[:2])
    mix = (0.65 * _noise(rng, 4) + 0.35 * _noise(rng, 14))[..., None]
    ground = first * (1 - mix) + second * mix
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    kind = int(rng.integers(4))
    period, angle = rng.uniform(12, 26), rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if kind == 0:  # planks
        relief = 9 * np.sin(2 * np.pi * along / period)
    elif kind == 1:  # tiles
        relief = np.where((np.floor(along / period) + np.floor(across / period)) % 2 == 0, 8.0, -8.0)
    elif kind == 2:  # gravel
        relief = 34 * (_noise(rng, 45) - 0.5)
    else:  # cloth
        relief = 7 * np.sin(2 * np.pi * along / 5) * np.sin(2 * np.pi * across / 5)
    return np.asarray(ground + np.asarray(relief, dtype=np.float32)[..., None], dtype=np.float32)


def _noise(rng: np.random.Generator, cells: int) -> Floats:
    """(H, W) smooth noise, 0..1."""
    coarse = rng.random((cells * 3 // 4 + 1, cells)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    return np.asarray(np.clip(smooth, 0, 1))
