"""Expressions that ask instead of naming, for the reasoning part of ReVOS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from salmacli.data.synthetic.expressions import Spoken
from salmacli.data.synthetic.meaning import Facts, Meaning, Phrase, has_distractor, referents

_MOTIONS = {
    "left": ("drifts towards the left edge", "moves to the left over time"),
    "right": ("drifts towards the right edge", "moves to the right over time"),
    "up": ("rises as time goes by", "moves upwards over time"),
    "down": ("falls as time goes by", "moves downwards over time"),
    "circling": ("goes round and round", "keeps coming back to its place"),
    "still": ("never changes its place", "does not move at all"),
    "growing": ("gets larger over time", "grows as time goes by"),
}
_EVENTS = {
    "enters": ("was not there at the beginning", "arrives later than the others"),
    "leaves": ("is gone at the end", "does not stay until the end"),
}
_ORDERS = {
    "biggest": "is larger than all the others",
    "smallest": "is smaller than all the others",
    "from the left": "has all the others to its right",
    "from the right": "has all the others to its left",
    "from the top": "is higher than all the others",
    "from the bottom": "is lower than all the others",
}


def draw_questions(rng: np.random.Generator, facts: Facts, eligible: Sequence[int], count: int) -> list[Spoken]:
    """Draws up to ``count`` questions that have exactly one answer, which is eligible."""
    asked: list[Spoken] = []
    for target in rng.permutation(np.array(eligible, dtype=np.int64)):
        found = [question for question in _questions(rng, facts, int(target)) if question is not None]
        if found and len(asked) < count:
            asked.append(found[int(rng.integers(len(found)))])
    return asked


def _questions(rng: np.random.Generator, facts: Facts, target: int) -> list[Spoken | None]:
    thing = facts.things[target]
    which = [(Phrase(), "object"), (Phrase(shape=thing.shape), thing.shape)]
    questions: list[Spoken | None] = []
    for phrase, noun in which:
        ending = _MOTIONS[thing.motion][int(rng.integers(2))]
        meaning = Meaning(phrase, motion=thing.motion)
        questions.append(_ask(facts, target, meaning, f"which {noun} {ending}?", "motion"))
        if thing.event != "stays":
            ending = _EVENTS[thing.event][int(rng.integers(2))]
            meaning = Meaning(phrase, event=thing.event)
            questions.append(_ask(facts, target, meaning, f"which {noun} {ending}?", "motion"))
    for order, ending in _ORDERS.items():
        questions.append(_ask(facts, target, Meaning(Phrase(), order=order), f"which object {ending}?", "ordinal"))
    questions.append(_odd_one(facts, target, "shape"))
    questions.append(_odd_one(facts, target, "colour"))
    return questions


def _ask(facts: Facts, target: int, meaning: Meaning, text: str, category: str) -> Spoken | None:
    if referents(facts, meaning) != frozenset({target}):
        return None
    return Spoken(text, meaning, (target,), category, has_distractor(facts, (target,)))


def _odd_one(facts: Facts, target: int, attribute: str) -> Spoken | None:
    own = getattr(facts.things[target], attribute)
    others = {getattr(thing, attribute) for index, thing in enumerate(facts.things) if index != target}
    if len(facts.things) < 3 or len(others) != 1 or own in others:
        return None
    phrase = Phrase(shape=own) if attribute == "shape" else Phrase(colour=own)
    return _ask(facts, target, Meaning(phrase), f"which object differs from the others in {attribute}?", "attribute")
