"""Names of benchmarks → benchmarks on disk; without a folder, the synthetic one in the same layout."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salmacli.config.schema import DataConfig, ModelConfig
from salmacli.data.benchmarks import Benchmark, open_benchmark
from salmacli.data.mixing import Source, TrainingMix
from salmacli.data.synthetic import ensure_synthetic, open_synthetic
from salmacli.engine.progress import Progress


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
    """Open every member of the training mix; see `open_source` for the errors."""
    sources = [Source(open_source(one.set, one.root, one.split, progress), one.repeats) for one in data.train]
    return TrainingMix(
        sources,
        seed=seed,
        clip_frames=model.clip_frames,
        decoded_frames=data.decoded_frames,
        expressions=data.expressions,
    )


def describe(benchmarks: Sequence[Benchmark]) -> list[dict[str, Any]]:
    """What was read, with a checksum over its videos, frames and expressions, for ``run.json``."""
    found = []
    for benchmark in benchmarks:
        digest = hashlib.sha256()
        for video in benchmark.videos:
            asked = [(expression.id, expression.text, expression.targets) for expression in video.expressions]
            digest.update(repr((video.name, video.frames, asked)).encode())
        found.append(
            {
                "set": benchmark.name,
                "root": str(benchmark.root),
                "split": benchmark.split,
                "synthetic": benchmark.synthetic,
                "videos": len(benchmark.videos),
                "expressions": sum(len(video.expressions) for video in benchmark.videos),
                "sha256": digest.hexdigest(),
            }
        )
    return found
