"""How often a model gave no mask, why, and what took its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from salmacli.config.files import legible
from salmacli.engine.scoring.predictions import Said


def fallback_counts(said: Iterable[Said], record: Mapping[str, Any]) -> dict[str, Any]:
    """What results count of fall-backs.

    Args:
        said: Of every expression that is scored.
        record: What the predictions say of themselves.

    Returns:
        ``fallbacks``, expressions by reason; and, where the predictions know, ``fallback``, what was to take the place
        of missing masks, ``empty_frames``, how many masks of frames the model left empty, and ``filled_frames``, how
        many of those were filled.
    """
    said = list(said)
    counts: dict[str, Any] = {
        "fallbacks": dict(Counter(legible(one.fallback) for one in said if one.fallback is not None).most_common())
    }
    resolved = record.get("resolved")
    if isinstance(resolved, Mapping) and isinstance(resolved.get("fallback"), str):
        counts["fallback"] = legible(resolved["fallback"])
    for key, numbers in (
        ("empty_frames", [one.empty for one in said]),
        ("filled_frames", [one.filled for one in said]),
    ):
        known = [number for number in numbers if number is not None]
        if known and len(known) == len(numbers):
            counts[key] = sum(known)
    return counts
