"""A benchmark → its predictions folder; a video is a unit of work that is on disk whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from salmacli.checkpoints.load import CheckpointInfo, load_checkpoint
from salmacli.config.files import write_json
from salmacli.data.benchmarks import Benchmark
from salmacli.data.frames import read_frame
from salmacli.engine.prediction.folder import SCHEMA, claim, done, write
from salmacli.engine.prediction.predictor import Predictor
from salmacli.engine.progress import Progress, Silent
from salmacli.engine.run_folder import RunFolder
from salmacli.engine.sources import describe
from salmacli.errors import UsageError
from salmacli.models.salma import Salma


def predict_benchmark(
    predictor: Predictor,
    benchmark: Benchmark,
    folder: Path,
    *,
    checkpoint: dict[str, Any],
    save_logits: bool = False,
    progress: Progress | None = None,
) -> None:
    """Predict what is not in `folder` yet, one file per video.

    Args:
        predictor: model and mode.
        benchmark: what to read.
        folder: the predictions folder. What another checkpoint, split or mode left there is set aside, and said.
        checkpoint: path, step and hash of the model, written beside the predictions.
        save_logits: also keep the mask logits, which `threshold-sweep` needs.
        progress: who is told.
    """
    progress = progress or Silent()
    record = {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "mode": predictor.mode,
        "synthetic": benchmark.synthetic,
        "data": describe([benchmark])[0]["sha256"],
        "checkpoint": checkpoint,
    }
    if predictor.mode == "sa2va":
        record["by_side"] = predictor.model.config.sam2.image_size  # who reads the logits must go the same way
    claim(folder, record, progress)
    open_videos = [video for video in benchmark.videos if not done(folder, video, save_logits)]
    total = sum(len(video.expressions) for video in benchmark.videos)
    left = sum(len(video.expressions) for video in open_videos)
    progress.start(f"predicting {benchmark.name}", total, total - left)
    try:
        for video in open_videos:
            frames = [read_frame(benchmark.frame_path(video, frame)) for frame in video.frames]
            texts = [expression.text for expression in video.expressions]
            tracks = predictor.video(frames, texts, still=benchmark.still)
            write(folder, video, tracks, save_logits)
            progress.advance(len(tracks))
    finally:
        progress.finish()
    write_json(folder / "prediction.json", {**record, "complete": True})


def load_model(run: RunFolder | None, checkpoint: Path | None) -> tuple[Salma, CheckpointInfo]:
    """The named checkpoint, or the newest of a run, on the best device there is.

    Raises:
        UsageError: both are named.
    """
    if run is not None and checkpoint is not None:
        raise UsageError("--run and --checkpoint both say which model", "give one of them")
    if checkpoint is None:
        if run is None:
            raise ValueError("a run or a checkpoint")
        checkpoint = run.newest_checkpoint()
    return load_checkpoint(checkpoint, "cuda" if torch.cuda.is_available() else "cpu")


def ensure_predictions(
    run: RunFolder | None,
    benchmark: Benchmark,
    mode: str | None = None,
    *,
    checkpoint: Path | None = None,
    save_logits: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Predict whatever a run's evaluation folder lacks.

    Args:
        run: gives the checkpoint and the folder.
        benchmark: what to predict.
        mode: None takes the model's own.
        checkpoint: instead of a run; its evaluations lie in its own folder.
        save_logits: see `predict_benchmark`.
        progress: who is told.

    Returns:
        The predictions folder, and ``run``, ``checkpoint`` and ``config`` for the results.
    """
    model, info = load_model(run, checkpoint)
    predictor = Predictor(model, mode or model.config.inference_mode)  # type: ignore[arg-type]
    if run is not None:
        folder = run.eval_folder(benchmark.name, predictor.mode)
    else:
        place = info.path if info.path.is_dir() else info.path.with_suffix("")
        folder = place / "eval" / benchmark.name / predictor.mode
    source = info.record()
    predict_benchmark(
        predictor,
        benchmark,
        folder / "predictions",
        checkpoint=source,
        save_logits=save_logits,
        progress=progress,
    )
    cma = model.config.cma
    config = {"cma": cma.enabled, "topk": cma.topk, "mba": cma.mba, "seed": info.run_config.get("seed")}
    return folder / "predictions", {"run": run.name if run else None, "checkpoint": source, "config": config}
