"""The wording around an expression: what the model is asked and what it answers.

Training draws from all of them; prediction always uses the first, so it never asks in words that training has not seen.
"""

from __future__ import annotations

SEG = "[SEG]"

QUESTIONS: tuple[str, ...] = (
    "Please segment {expression}.",
    "Where is {expression}? Answer with a mask.",
    "Can you mark {expression}?",
)

# The released Sa2VA is asked so when the expression is a question of its own.
QUESTION_ASKED = " {expression} Please respond with a segmentation mask."

ANSWERS: tuple[str, ...] = (
    f"Sure, {SEG}.",
    f"It is {SEG}.",
    f"Here is the mask: {SEG}.",
)
