"""Names of sets → sets on disk; without a folder, the synthetic benchmark in the same layout."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salmacli.config.schema import DataConfig, DatasetConfig, ModelConfig
from salmacli.data.benchmarks import DEFAULT_SPLITS, Benchmark, open_benchmark
from salmacli.data.sets import open_tolerantly, usual_place
from salmacli.data.synthetic import ensure_synthetic, open_synthetic
from salmacli.data.talks import TalkSet
from salmacli.data.training.mix import Grouping, Source, TrainingMix
from salmacli.data.training.moments import evenly
from salmacli.data.training.sources import Sampling
from salmacli.engine.progress import Progress
from salmacli.errors import DataError

TALKS_IN_DIGEST = 1000  # evenly spread; a file of 700,000 would take as many seconds as it takes minutes
USUAL_PICTURE_TOKENS = 256


def synthetic_root() -> Path:
    """Where the synthetic benchmark lies: `SALMA_SYNTHETIC`, or data/synthetic in the working directory."""
    return Path(os.environ.get("SALMA_SYNTHETIC") or Path("data") / "synthetic")


def open_source(name: str, root: Path | None, split: str | None, progress: Progress) -> Benchmark:
    """Open one benchmark.

    Args:
        name: mevis, revos, davis, …
        root: its folder in the official layout; None takes the synthetic benchmark, which is made if it is missing.
        split: None takes the one that people report.
        progress: told when the synthetic benchmark is made.

    Raises:
        DataError: the folder does not hold that benchmark.
    """
    if root is not None:
        return open_benchmark(name, root, split)
    return open_synthetic(name, ensure_synthetic(synthetic_root(), progress=progress), split)


def open_mix(data: DataConfig, model: ModelConfig, seed: int, progress: Progress) -> TrainingMix:
    """Open every member of the training mix.

    What is broken in a set's own file is left out, and told.

    Raises:
        DataError: all sets in one line whose folder does not hold them, or more of whose entries are broken than
            `data.max_bad_fraction` allows, or which have neither a folder nor a synthetic stand-in; or there is nothing
            to train on.
    """
    sources, errors = [], []
    for one in data.train:
        try:
            sources.append(_member(one, data, progress))
        except DataError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        told = "; ".join(str(error).removesuffix(f"; {error.mend}") for error in errors)
        what = f"{len(errors)} of {len(data.train)} sets cannot be trained on: {told}"
        raise DataError(what, "salma doctor train with the same options lists them")
    sampling = Sampling(model.clip_frames, data.decoded_frames, data.expressions, data.choice)
    tokens = model.mllm.native.get("image_seq_length", USUAL_PICTURE_TOKENS)
    return TrainingMix(sources, seed, sampling, Grouping(tokens, model.tiles) if data.group_lengths else None)


def _member(one: DatasetConfig, data: DataConfig, progress: Progress) -> Source:
    root = one.root or (data.root and usual_place(one.set, data.root))
    if root is None:
        if one.set not in DEFAULT_SPLITS:
            raise DataError(f"{one.set}: no folder is named", "set data.root, or the root of this member of data.train")
        return Source(open_source(one.set, None, one.split, progress), one.repeats)
    opened, faults = open_tolerantly(one.set, root, one.split)
    if faults:
        entries = "entry" if len(faults) == 1 else "entries"
        what = f"{one.set} in {root}: {len(faults)} broken {entries}, the first: {faults[0]}"
        if len(faults) > max(data.max_bad_fraction * (len(faults) + _entries(opened)), 1):
            mend = f"mend them, or raise data.max_bad_fraction = {data.max_bad_fraction}"
            raise DataError(what, f"{mend}; salma data verify {one.set} names all")
        progress.say(f"left out of {what}")
    return Source(opened, one.repeats, len(faults))


def _entries(opened: Benchmark | TalkSet) -> int:
    return sum(len(video.expressions) for video in opened.videos) if isinstance(opened, Benchmark) else len(opened)


def describe(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """What was read, and how many broken entries were not, for ``run.json``."""
    return [{**describe_set(source.set), "left_out": source.left_out} for source in sources]


def describe_set(one: Benchmark | TalkSet) -> dict[str, Any]:
    """A set, with a checksum over what it says."""
    return {
        "set": one.name,
        "root": str(one.root),
        "split": one.split,
        "synthetic": one.synthetic,
        **(_described(one) if isinstance(one, Benchmark) else _told(one)),
    }


def _described(benchmark: Benchmark) -> dict[str, Any]:
    digest = hashlib.sha256()
    for video in benchmark.videos:
        asked = [(expression.id, expression.text, expression.targets) for expression in video.expressions]
        digest.update(repr((video.name, video.frames, asked)).encode())
    return {"videos": len(benchmark.videos), "expressions": _entries(benchmark), "sha256": digest.hexdigest()}


def _told(talks: TalkSet) -> dict[str, Any]:
    digest = hashlib.sha256()
    for n in evenly(len(talks), min(TALKS_IN_DIGEST, len(talks))):
        digest.update(_said(talks, int(n)).encode())
    return {"talks": len(talks), "dropped": dict(talks.dropped), "sha256": digest.hexdigest()}


def _said(talks: TalkSet, n: int) -> str:
    """A talk, or what is wrong with it: a broken one is dropped when it is drawn, and does not end the start."""
    try:
        return repr(talks.talk(n))
    except DataError as error:
        return str(error)
