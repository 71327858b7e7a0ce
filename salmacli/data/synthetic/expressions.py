"""Expressions for a scene, drawn in a mix of categories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from salmacli.data.synthetic.meaning import Facts, Meaning, Phrase, has_distractor, needs_motion, referents
from salmacli.data.synthetic.scene import PAIRS, Pair, Thing
from salmacli.data.synthetic.wording import MOTION_WORDS, noun_phrase, one_of, wording

# Weights of the draw. Scenes do not always offer a relation, an order or a plural, so these three stand
# above the shares they come out at: 45, 20, 12, 8, 10 and 5 %.
MIX: dict[str, float] = {
    "attribute": 0.385,
    "motion": 0.19,
    "relation": 0.17,
    "ordinal": 0.115,
    "several": 0.10,
    "none": 0.04,
}


@dataclass(frozen=True)
class Spoken:
    """An expression about a scene.

    Attributes:
        text: Lower case, no full stop.
        meaning: What it says; None for a made-up target.
        targets: Indices of things, sorted.
        category: A key of ``MIX``.
        distractor: See ``has_distractor``.
    """

    text: str
    meaning: Meaning
    targets: tuple[int, ...]
    category: str
    distractor: bool


def draw_expressions(
    rng: np.random.Generator, facts: Facts, count: int, allowed: frozenset[Pair], said: frozenset[Pair]
) -> list[Spoken]:
    """Draws different expressions whose targets are all of allowed pairs.

    Args:
        rng: Source of all chance.
        facts: The scene.
        count: How many to aim at; fewer where the scene does not offer more.
        allowed: Pairs that may be referred to.
        said: Pairs that may be named without being there (category "none").
    """
    eligible = [i for i, thing in enumerate(facts.things) if thing.pair in allowed and facts.seen(i)]
    spoken: list[Spoken] = []
    if not eligible:
        return spoken
    texts: set[str] = set()
    targets: set[tuple[Meaning, tuple[int, ...]]] = set()
    categories = list(MIX)
    for _ in range(count * 3):
        if len(spoken) == count:
            break
        category = categories[int(rng.choice(len(categories), p=list(MIX.values())))]
        found = draw_one(rng, facts, category, eligible, said)
        if found and found.text not in texts and (found.meaning, found.targets) not in targets:
            spoken.append(found)
            texts.add(found.text)
            targets.add((found.meaning, found.targets))
    return spoken


def draw_one(
    rng: np.random.Generator, facts: Facts, category: str, eligible: Sequence[int], said: frozenset[Pair]
) -> Spoken | None:
    """Draws one expression of a category; None where the scene seems to offer none."""
    for _ in range(24):
        target = int(eligible[int(rng.integers(len(eligible)))])
        meaning = _DRAWS[category](rng, facts, target) if category != "none" else _nothing(rng, facts, said)
        if meaning is None:
            continue
        meant = referents(facts, meaning)
        if meant is None or not _wanted(rng, facts, meaning, category, meant, target):
            continue
        if not meant <= set(eligible):
            continue
        targets = tuple(sorted(meant))
        text = wording(rng, meaning, len(targets))
        return Spoken(text, meaning, targets, category, has_distractor(facts, targets))
    return None


def _wanted(
    rng: np.random.Generator,
    facts: Facts,
    meaning: Meaning,
    category: str,
    meant: frozenset[int],
    target: int,
) -> bool:
    if category == "none":
        return not meant
    if category == "several":
        return len(meant) >= 2
    if meant != {target}:
        return False
    # Most motion expressions cannot be answered from one frame.
    return category != "motion" or needs_motion(facts, meaning) or rng.random() < 0.12


def _phrase(rng: np.random.Generator, thing: Thing, weights: Sequence[float]) -> Phrase:
    """Says some of a thing's attributes.

    The weights are for nothing, shape, colour, both, both with size or texture, shape with texture or size.
    """
    size = thing.size if thing.size != "changing" else None
    texture = thing.texture if thing.texture != "plain" else None
    choices = (
        Phrase(),
        Phrase(shape=thing.shape),
        Phrase(colour=thing.colour),
        Phrase(thing.colour, thing.shape),
        Phrase(thing.colour, thing.shape, size=size) if size else Phrase(thing.colour, thing.shape, texture=texture),
        Phrase(shape=thing.shape, texture=texture) if texture else Phrase(shape=thing.shape, size=size),
    )
    return choices[int(rng.choice(len(choices), p=np.array(weights) / sum(weights)))]


def _attribute(rng: np.random.Generator, facts: Facts, target: int) -> Meaning | None:
    return Meaning(_phrase(rng, facts.things[target], (0, 2, 1.2, 5, 2, 1.5)))


def _motion(rng: np.random.Generator, facts: Facts, target: int) -> Meaning | None:
    thing = facts.things[target]
    phrase = _phrase(rng, thing, (2, 4, 1.5, 1, 0, 0.5))
    if thing.event != "stays" and rng.random() < 0.4:
        return Meaning(phrase, event=thing.event)
    return Meaning(phrase, motion=thing.motion)


def _relation(rng: np.random.Generator, facts: Facts, target: int) -> Meaning | None:
    others = [index for index in range(len(facts.things)) if index != target]
    anchor = facts.things[int(rng.choice(others))]
    side = ("left", "right", "above", "below")[int(rng.integers(4))]
    phrase = _phrase(rng, facts.things[target], (1, 5, 1, 1, 0, 0))
    return Meaning(phrase, side=side, anchor=_phrase(rng, anchor, (0, 1, 0.4, 3, 0, 0)))


def _ordinal(rng: np.random.Generator, facts: Facts, target: int) -> Meaning | None:
    orders = ("from the left", "from the right", "from the top", "from the bottom", "biggest", "smallest")
    order = orders[int(rng.integers(len(orders)))]
    rank = 1 if order in ("biggest", "smallest") or rng.random() < 0.55 else int(rng.integers(2, 4))
    return Meaning(_phrase(rng, facts.things[target], (2, 4, 2, 0, 0, 0)), order=order, rank=rank)


def _several(rng: np.random.Generator, facts: Facts, target: int) -> Meaning | None:
    thing = facts.things[target]
    texture = thing.texture if thing.texture != "plain" else None
    size = thing.size if thing.size != "changing" else None
    choices = (
        Phrase(shape=thing.shape),
        Phrase(colour=thing.colour),
        Phrase(texture=texture) if texture else Phrase(shape=thing.shape),
        Phrase(size=size) if size else Phrase(colour=thing.colour),
    )
    pick = int(rng.integers(6))
    if pick < len(choices):
        return Meaning(choices[pick], several=True)
    return Meaning(Phrase(), motion=thing.motion, several=True)


def _nothing(rng: np.random.Generator, facts: Facts, said: frozenset[Pair]) -> Meaning | None:
    """Half of them near misses: the shape is there, in another colour."""
    present = {thing.shape for thing in facts.things}
    pool = [pair for pair in PAIRS if pair in said and (pair[1] in present or rng.random() < 0.5)]
    return Meaning(Phrase(*pool[int(rng.integers(len(pool)))])) if pool else None


_DRAWS: dict[str, Callable[[np.random.Generator, Facts, int], Meaning | None]] = {
    "attribute": _attribute,
    "motion": _motion,
    "relation": _relation,
    "ordinal": _ordinal,
    "several": _several,
}


def annotators(rng: np.random.Generator, facts: Facts, target: int) -> list[str] | None:
    """Four people's words for one thing, as in Ref-DAVIS; None where attributes do not single it out."""
    thing = facts.things[target]
    size = thing.size if thing.size != "changing" else None
    texture = thing.texture if thing.texture != "plain" else None
    pair = Phrase(thing.colour, thing.shape)
    single = [
        phrase
        for phrase in (
            pair,
            replace(pair, size=size),
            replace(pair, texture=texture),
            Phrase(shape=thing.shape),
        )
        if referents(facts, Meaning(phrase)) == frozenset({target})
    ]
    if not single or single[0] == Phrase(shape=thing.shape):
        return None
    fullest = Meaning(single[int(rng.integers(len(single)))])
    moving = Meaning(single[0], motion=thing.motion)
    words = [one_of(rng, MOTION_WORDS[thing.motion])] if referents(facts, moving) == frozenset({target}) else []
    plain, after = noun_phrase(rng, single[0])
    return [
        wording(rng, Meaning(single[0]), 1),
        " ".join(["a" if plain[0][0] not in "aeiou" else "an", *plain, *after]),
        wording(rng, fullest, 1),
        " ".join(["the", *plain, *after, *words]),
    ]
