"""The sentences, read back by a second reader that shares no code with the grammar."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from salmacli.data.synthetic import expressions, questions
from salmacli.data.synthetic.meaning import Facts, Meaning, Phrase, has_distractor, referents
from salmacli.data.synthetic.render import render
from salmacli.data.synthetic.scene import (
    COLOURS,
    FRAMES,
    HELD_OUT,
    PAIRS,
    SEEN,
    SHAPES,
    Scene,
    Thing,
    draw_scene,
)

SCENES = 45


def drawn(index: int, held_out: bool) -> tuple[Facts, list[expressions.Spoken], list[expressions.Spoken]]:
    rng = np.random.default_rng([7, index, held_out])
    scene = draw_scene(rng, held_out)
    facts = Facts.of(scene, render(scene).masks)
    allowed, said = frozenset(HELD_OUT if held_out else SEEN), frozenset(PAIRS if held_out else SEEN)
    spoken = expressions.draw_expressions(rng, facts, 7, allowed, said)
    eligible = [i for i, thing in enumerate(scene.things) if thing.pair in allowed and facts.seen(i)]
    return facts, spoken, questions.draw_questions(rng, facts, eligible, 3)


@pytest.fixture(scope="module")
def corpus():
    return [drawn(index, held_out) for held_out in (False, True) for index in range(SCENES)]


# Longest wordings first, so that "to the left of" is not taken for a motion.
SIDES = {
    "to the left of the": (0, 1), "to the right of the": (0, -1),
    "left of the": (0, 1), "right of the": (0, -1),
    "above the": (1, 1), "over the": (1, 1), "below the": (1, -1), "under the": (1, -1),
}  # fmt: skip
ORDERS = {
    "leftmost": (0, 1), "farthest to the left": (0, 1), "from the left": (0, 1),
    "rightmost": (0, -1), "farthest to the right": (0, -1), "from the right": (0, -1),
    "topmost": (1, 1), "highest up": (1, 1), "from the top": (1, 1),
    "lowest": (1, -1), "nearest to the bottom": (1, -1), "from the bottom": (1, -1),
    "biggest": (2, -1), "largest": (2, -1), "smallest": (2, 1),
}  # fmt: skip
MOTIONS = {
    "left": ("moving to the left", "moving left", "going left"),
    "right": ("moving to the right", "moving right", "going right"),
    "up": ("moving up", "going up", "rising"),
    "down": ("moving down", "going down", "sinking"),
    "circling": ("moving in a circle", "going round in a circle", "circling"),
    "still": ("staying still", "standing still", "not moving"),
    "growing": ("growing", "getting bigger", "becoming larger"),
    "enters": ("entering the picture", "coming in from outside"),
    "leaves": ("leaving the picture", "going out of the picture"),
}
RANKS = {"first": 1, "second": 2, "third": 3, "fourth": 4}


def movements(thing: Thing, area: np.ndarray) -> set[str]:
    """What a thing does, measured from its way."""
    (dx, dy), steps = thing.centres[-1] - thing.centres[0], np.diff(thing.centres, axis=0)
    travelled = np.hypot(*steps.T).sum()
    does = set()
    if thing.radii[-1] >= 1.6 * thing.radii[0]:
        does.add("growing")
    elif travelled < 1:
        does.add("still")
    if travelled > 60 and np.hypot(dx, dy) < 20:
        does.add("circling")
    if abs(dx) >= 40 > abs(dy):
        does.add("right" if dx > 0 else "left")
    if abs(dy) >= 40 > abs(dx):
        does.add("down" if dy > 0 else "up")
    if does & {"left", "right", "up", "down"}:
        does |= {"enters"} if area[0] == 0 else {"leaves"} if area[-1] == 0 else set()
    return does


def fits(words: list[str], thing: Thing) -> bool:
    for word in words:
        noun = word.rstrip("s") if word not in ("cross", "crosses") else "cross"
        if noun in SHAPES and noun != thing.shape:
            return False
        if word in COLOURS and word != thing.colour:
            return False
        if word in ("striped", "stripes") and thing.texture != "striped":
            return False
        if word in ("dotted", "dots") and thing.texture != "dotted":
            return False
        if word == "plain" and thing.texture != "plain":
            return False
        diameter = 2 * thing.radii
        if word in ("small", "little") and diameter.max() > 30:
            return False
        if word in ("big", "large") and diameter.min() < 36:
            return False
    return True


def read(text: str, facts: Facts) -> set[int]:
    """The things a sentence means."""
    things, rest = facts.things, text
    conditions = []
    for wording, (axis, sign) in SIDES.items():
        if wording in rest:
            rest, anchor = rest.split(wording)
            (at,) = [i for i, thing in enumerate(things) if fits(anchor.split(), thing)]
            gap = [sign * (things[at].centres - thing.centres)[:, axis] for thing in things]
            conditions.append(lambda i, gap=gap, at=at: i != at and bool((gap[i] > 0).all()))
            # Nobody else may be there even for a moment.
            near = [i for i, thing in enumerate(things) if i != at and fits(rest.split(), thing)]
            assert all((gap[i] > 0).all() or (gap[i] <= 0).all() for i in near), text
            break
    for motion, wordings in MOTIONS.items():
        found = next((wording for wording in wordings if rest.endswith(wording)), None)
        if found:
            rest = rest.removesuffix(found)
            does = [movements(thing, facts.areas[i]) for i, thing in enumerate(things)]
            conditions.append(lambda i, does=does, motion=motion: motion in does[i])
            break
    order = next((wording for wording in ORDERS if wording in rest), None)
    rank = next((RANKS[word] for word in rest.split() if word in RANKS), 1)
    if order:
        rest = rest.replace(order, "")
    among = [i for i, thing in enumerate(things) if fits(rest.split(), thing) and all(ok(i) for ok in conditions)]
    if not order:
        return set(among)
    axis, sign = ORDERS[order]
    chosen = set()
    for frame in range(FRAMES):
        keys = {i: sign * (*things[i].centres[frame], things[i].radii[frame])[axis] for i in among}
        chosen.add(sorted(among, key=keys.__getitem__)[rank - 1])
    assert len(chosen) == 1, f"{text}: the order changes over time"
    return chosen


def test_every_sentence_means_exactly_its_targets(corpus):
    count = 0
    for facts, spoken, _ in corpus:
        for one in spoken:
            assert read(one.text, facts) == set(one.targets), one.text
            count += 1
    assert count > 5 * len(corpus)


def test_the_wording_keeps_its_limits(corpus):
    for _, spoken, asked in corpus:
        assert len({one.text for one in spoken}) == len(spoken)
        for one in [*spoken, *asked]:
            assert one.text == one.text.lower()
            assert len(one.text.split()) <= 12
            assert not one.text.endswith((".", " "))
        assert all(one.text.endswith("?") and len(one.targets) == 1 for one in asked)
        for one in spoken:
            plural = one.text.split()[0] in ("all", "both", "every") or one.text.split()[1] in (
                "two",
                "three",
                "four",
                "five",
                "six",
            )
            assert plural == (one.category == "several") == (len(one.targets) > 1), one.text
            assert (one.category == "none") == (not one.targets)


def test_the_mix_is_about_what_was_asked_for(corpus):
    counts = Counter(one.category for _, spoken, _ in corpus for one in spoken)
    aimed = {
        "attribute": 0.45,
        "motion": 0.20,
        "relation": 0.12,
        "ordinal": 0.08,
        "several": 0.10,
        "none": 0.05,
    }
    for category, share in aimed.items():
        assert counts[category] / counts.total() == pytest.approx(share, abs=0.05)
    assert set(counts) == set(aimed)


def test_most_motion_expressions_need_several_frames(corpus):
    needed = [
        len([t for t in facts.things if fits(_without_motion(one.text), t)]) > 1
        for facts, spoken, _ in corpus
        for one in spoken
        if one.category == "motion"
    ]
    assert np.mean(needed) > 0.7


def _without_motion(text: str) -> list[str]:
    for wordings in MOTIONS.values():
        for wording in wordings:
            text = text.removesuffix(wording)
    return text.split()


def test_distractors_are_there_often_and_really(corpus):
    flags = []
    for facts, spoken, _ in corpus:
        for one in spoken:
            flags.append(one.distractor)
            if one.distractor:
                targets = [facts.things[i] for i in one.targets]
                others = [thing for i, thing in enumerate(facts.things) if i not in one.targets]
                assert any(
                    thing.diameter > target.diameter and np.ptp(thing.paint) > np.ptp(target.paint)
                    for thing in others
                    for target in targets
                )
    assert 0.3 < np.mean(flags) < 0.55


def test_training_never_says_or_shows_a_held_out_pair(corpus):
    held_out = {f"{colour} {shape}" for colour, shape in HELD_OUT}
    for facts, spoken, asked in corpus[:SCENES]:
        assert not {thing.pair for thing in facts.things} & set(HELD_OUT)
        for one in [*spoken, *asked]:
            assert not any(pair in one.text for pair in held_out)
    for facts, spoken, asked in corpus[SCENES:]:
        for one in [*spoken, *asked]:
            assert {facts.things[i].pair for i in one.targets} <= set(HELD_OUT)


def test_the_split_keeps_every_colour_and_shape_in_training():
    assert not set(SEEN) & set(HELD_OUT)
    assert {colour for colour, _ in SEEN} == {colour for colour, _ in HELD_OUT} == set(COLOURS)
    assert {shape for _, shape in SEEN} == {shape for _, shape in HELD_OUT} == set(SHAPES)


def thing(shape="circle", x=80.0, y=60.0, dx=0.0, radius=12.0, **more) -> Thing:
    centres = np.stack([np.linspace(x, x + dx, FRAMES), np.full(FRAMES, y)], axis=1)
    looks = {"colour": "red", "texture": "plain", "size": "small", "motion": "still", "event": "stays"}
    return Thing(shape=shape, vivid=1.0, angle=0.0, centres=centres, radii=np.full(FRAMES, radius), **looks | more)


def facts_of(*things: Thing) -> Facts:
    scene = Scene(things, 0)
    return Facts.of(scene, render(scene).masks)


def test_what_people_could_disagree_about_cannot_be_said():
    star, anchor = Phrase(shape="star"), Phrase(shape="circle")
    left = Meaning(star, side="left", anchor=anchor)
    clear = facts_of(thing(), thing("star", x=30))
    assert referents(clear, left) == {1}
    crossing = facts_of(thing(y=30), thing("star", x=30, y=90, dx=100, motion="right"))
    assert referents(crossing, left) is None
    askew = facts_of(thing(x=100, y=20), thing("star", x=80, y=100))
    assert referents(askew, left) is None
    two_anchors = facts_of(thing(), thing(x=130), thing("star", x=30))
    assert referents(two_anchors, left) is None
    ordered = Meaning(Phrase(shape="star"), order="from the left")
    swapping = facts_of(thing("star", x=30, y=30, dx=100), thing("star", x=80, y=90))
    assert referents(swapping, ordered) is None
    growing = thing("star", x=40, size="changing", motion="growing")
    assert referents(facts_of(growing, thing("star", x=110)), Meaning(star, motion="still")) is None
    assert referents(facts_of(growing, thing("star", x=110)), Meaning(Phrase(size="small"))) is None


def test_a_distractor_has_to_be_larger_and_brighter():
    small = thing(x=30)
    large = thing("star", x=110, radius=24.0)
    assert not has_distractor(facts_of(small, large), [0])  # as vivid as the other
    dull = replace(small, vivid=0.2)
    assert has_distractor(facts_of(dull, large), [0])
    assert not has_distractor(facts_of(dull, large), [1])
    assert not has_distractor(facts_of(dull, replace(large, radii=dull.radii)), [0])
    assert not has_distractor(facts_of(dull, large), [])
