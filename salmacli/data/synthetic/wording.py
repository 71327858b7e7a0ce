"""Meanings put into words: a compact grammar with some synonyms, lower case, at most 12 words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from salmacli.data.synthetic.meaning import Meaning, Phrase

_NOUNS = ("object", "shape", "thing")
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
_RANKS = {1: "first", 2: "second", 3: "third", 4: "fourth"}
MOTION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("moving left", "moving to the left", "going left"),
    "right": ("moving right", "moving to the right", "going right"),
    "up": ("moving up", "going up", "rising"),
    "down": ("moving down", "going down", "sinking"),
    "circling": ("moving in a circle", "going round in a circle", "circling"),
    "still": ("staying still", "standing still", "not moving"),
    "growing": ("growing", "getting bigger", "becoming larger"),
}
_EVENT_WORDS = {
    "enters": ("entering the picture", "coming in from outside"),
    "leaves": ("leaving the picture", "going out of the picture"),
}
_SIDE_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_ENDS = {
    "from the left": ("leftmost", "farthest to the left"),
    "from the right": ("rightmost", "farthest to the right"),
    "from the top": ("topmost", "highest up"),
    "from the bottom": ("lowest", "nearest to the bottom"),
}
_SIZES = {"small": ("small", "little"), "big": ("big", "large")}
_TEXTURES = {
    "striped": ("striped", "with stripes"),
    "dotted": ("dotted", "with dots"),
    "plain": ("plain", "plain"),
}


def wording(rng: np.random.Generator, meaning: Meaning, count: int) -> str:
    """Puts a meaning into words.

    Args:
        rng: Chooses among synonyms.
        meaning: What to say.
        count: How many things are meant; used only in plurals.
    """
    if meaning.several:
        return _plural(rng, meaning, count)
    noun, after = noun_phrase(rng, meaning.phrase)
    if meaning.motion is not None:
        after = [*after, one_of(rng, MOTION_WORDS[meaning.motion])]
    elif meaning.event is not None:
        after = [*after, one_of(rng, _EVENT_WORDS[meaning.event])]
    elif meaning.side is not None and meaning.anchor is not None:
        anchor, tail = noun_phrase(rng, meaning.anchor)
        after = [*after, one_of(rng, _SIDE_WORDS[meaning.side]), "the", *anchor, *tail]
    elif meaning.order in ("biggest", "smallest"):
        words = {"biggest": ("biggest", "largest"), "smallest": ("smallest",)}[meaning.order]
        noun = [one_of(rng, words), *noun]
    elif meaning.order is not None:
        if meaning.rank == 1 and rng.random() < 0.8:
            end = _ENDS[meaning.order]
            noun, after = ([end[0], *noun], after) if rng.random() < 0.7 else (noun, [*after, end[1]])
        else:
            noun, after = [_RANKS[meaning.rank], *noun], [*after, meaning.order]
    return " ".join(["the", *noun, *after])


def noun_phrase(rng: np.random.Generator, phrase: Phrase) -> tuple[list[str], list[str]]:
    """The words up to the noun, without article, and those that have to follow it."""
    before: list[str] = []
    after: list[str] = []
    if phrase.size is not None:
        before.append(one_of(rng, _SIZES[phrase.size]))
    if phrase.texture is not None:
        short, long = _TEXTURES[phrase.texture]
        if rng.random() < 0.6 or short == long:
            before.append(short)
        else:
            after.append(long)
    if phrase.colour is not None:
        before.append(phrase.colour)
    return [*before, phrase.shape or one_of(rng, _NOUNS)], after


def _plural(rng: np.random.Generator, meaning: Meaning, count: int) -> str:
    (*before, noun), after = noun_phrase(rng, meaning.phrase)
    if meaning.motion is not None:
        after = [*after, one_of(rng, MOTION_WORDS[meaning.motion])]
    many = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    starts = [["the", _NUMBERS[count]], ["all", "the"], ["both"] if count == 2 else ["all"]]
    if rng.random() < 0.2:
        return " ".join(["every", *before, noun, *after])
    return " ".join([*starts[int(rng.integers(3))], *before, many, *after])


def one_of(rng: np.random.Generator, words: Sequence[str]) -> str:
    """One synonym."""
    return words[int(rng.integers(len(words)))]
