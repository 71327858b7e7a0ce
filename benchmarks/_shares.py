"""Where the time of a prediction goes, beside where its arithmetic goes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch
from _prediction import ANSWER, TEXTS

from salmacli.checkpoints.empty import empty_model
from salmacli.config.schema import ModelConfig, PredictConfig
from salmacli.data import rle
from salmacli.data.frames import arrays
from salmacli.engine.flops import measure
from salmacli.engine.prediction import tracking, tracks
from salmacli.engine.prediction.predictor import Predictor
from salmacli.models import propagation
from salmacli.models.mllm import chat_of
from salmacli.models.tokenizer import build_tokenizer

READING, RESIZING, REST = "frame reading", "resizing and RLE", "rest"
# Part of the FLOP table → ours.
COUNTED = {
    "vision tower": "vision tower",
    "vision-language projector": "vision tower",
    "LLM prefix": "LLM prefix",
    "LLM answer": "LLM answers",
    "language head": "LLM answers",
    "text projector": "LLM answers",
    "SAM 2 image encoder": "SAM 2 image encoder",
    "decoder's fine levels": "mask decoder",
    "visual pre-pass": "visual pre-pass",
    "CMA": "CMA",
    "mask decoder": "mask decoder",
    "memory attention": "memory attention",
    "memory encoder": "memory encoder",
}
ONCE = ("frame", "video")  # units of the parts that all expressions share


class Stopwatch:
    """Seconds by part; a part within another stops the other's clock.

    Args:
        device: it is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.thread = device, threading.get_ident()
        self.seconds: Counter[str] = Counter()
        self._open = [REST]
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if threading.get_ident() != self.thread:  # what other threads do beside is not waited for
            yield
            return
        self._turn()
        # The pre-pass runs the mask decoder, and is all that the attention adds beside itself.
        self._open.append("visual pre-pass" if self._open[-1] == "visual pre-pass" else part)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def stop(self) -> None:
        self._turn()

    def _turn(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def watched(watch: Stopwatch, owner: Any, name: str, part: str) -> Iterator[None]:
    """Time every call of a function, under the name by which its callers find it."""
    own, function = name in vars(owner), getattr(owner, name)

    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with watch(part):
            return function(*args, **kwargs)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, function) if own else delattr(owner, name)


def waiting(frames: Iterator[Any], watch: Stopwatch) -> Iterator[Any]:
    """The same, and how long its consumer waits."""
    while True:
        with watch(READING):
            try:
                one = next(frames)
            except StopIteration:
                return
        yield one


def shares(
    predictor: Predictor, config: ModelConfig, frames: list[np.ndarray], texts: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Part → seconds, GFLOP, and the share of both."""
    model = predictor.model
    watch = Stopwatch(model.device)
    places: list[tuple[Any, str, str]] = [
        (model.mllm, "encode_frames", "vision tower"),
        (model.mllm, "read", "LLM prefix"),
        (model.mllm, "answer", "LLM answers"),
        (model, "language", "LLM answers"),
        (model.grounding, "encode", "SAM 2 image encoder"),
        (model, "prior", "visual pre-pass"),
        (model, "attend", "CMA"),
        (model.grounding, "decode", "mask decoder"),
        (model.grounding, "fine_levels", "mask decoder"),
        (tracking, "coloured", "memory attention"),
        (propagation, "memorise", "memory encoder"),
        (tracks, "resized", RESIZING),
        (rle, "encode", RESIZING),
    ]
    with ExitStack() as stack:
        for owner, name, part in places:
            stack.enter_context(watched(watch, owner, name, part))
        source = arrays(frames)
        read: Any = source.read
        source.read = lambda *args, **kwargs: waiting(read(*args, **kwargs), watch)  # type: ignore[method-assign]
        predictor.video(source, texts, answer=ANSWER)
        watch.stop()
    counted = flops(config, predictor.settings, len(frames), len(texts))
    whole, all_flops = sum(watch.seconds.values()), sum(counted.values())
    return {
        part: {
            "seconds": round(watch.seconds[part], 4),
            "share": round(watch.seconds[part] / whole, 4),
            "gflop": round(counted[part] / 1e9, 3),
            "flop_share": round(counted[part] / all_flops, 4),
        }
        for part in [READING, *dict.fromkeys(COUNTED.values()), RESIZING, REST]
    }


def flops(config: ModelConfig, settings: PredictConfig, frames: int, expressions: int) -> Counter[str]:
    """Operations by part for all expressions, when what is common to them is computed once."""
    tokenizer = build_tokenizer(TEXTS, config.mllm.vocabulary, chat_of(config.mllm))
    counted: Counter[str] = Counter()
    for cost in measure(empty_model(config, tokenizer), frames, TEXTS[0], settings):
        counted[COUNTED[cost.part]] += cost.total * (1 if cost.unit in ONCE else expressions)
    return counted


def shares_table(parts: dict[str, dict[str, float]]) -> list[str]:
    lines = [f"{'':22}{'s':>9}{'share':>9}{'GFLOP':>12}{'share':>9}"]
    for part, row in parts.items():
        lines.append(
            f"{part:22}{row['seconds']:>9.3f}{row['share']:>9.1%}{row['gflop']:>12.2f}{row['flop_share']:>9.1%}"
        )
    return lines
