"""The wording around an expression: what the model is asked and what it answers.

Training draws from all wordings of a kind; prediction always uses the first, so it never asks in words that training
has not seen. Which kind an expression is can be seen from its text alone, so that both agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SEG = "[SEG]"

# What is named.
QUESTIONS: tuple[str, ...] = (
    "Please segment {expression}.",
    "Where is {expression}? Answer with a mask.",
    "Can you mark {expression}?",
    "Give me the mask of {expression}.",
    "Which pixels belong to {expression}?",
    "Find and segment {expression}, please.",
)

# What is a question of its own; the first is how the released Sa2VA is asked.
ASKED: tuple[str, ...] = (
    " {expression} Please respond with a segmentation mask.",
    "{expression} Answer with a mask.",
    "{expression} Give me its mask.",
    "Answer with a mask: {expression}",
)

# What is described in several sentences.
DESCRIBED: tuple[str, ...] = (
    "Please segment the object according to the description: {expression}",
    "Give me the mask of what is described here: {expression}",
    "Which object is it? Answer with a mask. {expression}",
)

ANSWERS: tuple[str, ...] = (
    f"Sure, {SEG}.",
    f"It is {SEG}.",
    f"Here is the mask: {SEG}.",
    f"{SEG}.",
    f"The mask is {SEG}.",
)

# The wording that prediction uses comes as often as all others together.
FIRST_SHARE = 0.5


def questions(expression: str) -> tuple[str, ...]:
    """The wordings of the question about an expression, by its kind."""
    text = expression.rstrip()
    if text.endswith("?"):
        return ASKED
    return DESCRIBED if ". " in text else QUESTIONS


def draw(rng: np.random.Generator, wordings: Sequence[str]) -> str:
    """One of several wordings, the first of them in `FIRST_SHARE` of all cases."""
    return wordings[0] if len(wordings) == 1 or rng.random() < FIRST_SHARE else str(rng.choice(wordings[1:]))
