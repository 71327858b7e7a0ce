from __future__ import annotations

import numpy as np
import pytest

from salmacli.data.templates import ANSWERS, ASKED, DESCRIBED, FIRST_SHARE, QUESTIONS, SEG, draw, questions


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("the red circle", QUESTIONS),
        ("the red circle.", QUESTIONS),
        ("which one is red?", ASKED),
        ("A man in red. He walks to the left.", DESCRIBED),
        ("There is a man. Where does he go?", ASKED),
        ("no. 7", DESCRIBED),  # rare, and both ends of the model see it alike
    ],
)
def test_the_wording_follows_from_the_text(text, kind):
    assert questions(text) is kind


def test_every_wording_has_its_place():
    for wordings in (QUESTIONS, ASKED, DESCRIBED):
        assert len(set(wordings)) == len(wordings) > 2
        assert all(one.count("{expression}") == 1 for one in wordings)
    assert len(set(ANSWERS)) == len(ANSWERS) > 2 and all(one.count(SEG) == 1 for one in ANSWERS)


def test_the_wording_of_prediction_is_drawn_half_of_the_time_and_all_others_too():
    rng = np.random.default_rng(0)
    drawn = [draw(rng, QUESTIONS) for _ in range(2000)]
    assert set(drawn) == set(QUESTIONS)
    assert drawn.count(QUESTIONS[0]) / 2000 == pytest.approx(FIRST_SHARE, abs=0.05)
    assert draw(rng, ("only",)) == "only"
