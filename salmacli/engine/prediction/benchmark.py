"""A benchmark → its predictions folder; a video is a unit of work that is on disk whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import salmacli
from salmacli.checkpoints.load import CheckpointInfo, config_of, load_checkpoint, open_checkpoint
from salmacli.config.schema import ModelConfig, PredictConfig
from salmacli.data.benchmarks import Benchmark
from salmacli.data.records import Video
from salmacli.engine.prediction.folder import (
    SCHEMA,
    check_ours,
    claim,
    done,
    finish,
    read_record,
    refuse_failed,
    same,
    write,
)
from salmacli.engine.prediction.predictor import Predictor
from salmacli.engine.prediction.settings import changed, changing, label, resolved, speed
from salmacli.engine.prediction.shares import Group, group, share
from salmacli.engine.progress import Progress, Silent
from salmacli.engine.run_folder import RunFolder
from salmacli.engine.sources import describe_set
from salmacli.errors import DataError, SalmaError, UsageError
from salmacli.models.salma import Salma

# (checkpoint, settings with their precision, device, who is told) → the predictor
Load = Callable[[Path, PredictConfig, torch.device, Progress], Predictor]
_NAMED = 3  # in a message
# Of the attention: told with the results where they are not their defaults.
_OPTIONS = {"tau", "pooling", "layers", "levels", "adaptive_gate", "film", "decoder_fusion"}


@dataclass(frozen=True)
class Job:
    """What is predicted, by what, how and where; made without the model's weights.

    Attributes:
        benchmark: What is read.
        info: The checkpoint.
        model: Its model's config.
        settings: As the user gave them.
        run: Whose checkpoint it is; None for one of no run.
    """

    benchmark: Benchmark
    info: CheckpointInfo
    model: ModelConfig
    settings: PredictConfig
    run: RunFolder | None = None

    @property
    def folder(self) -> Path:
        """Of the predictions."""
        how = label(self.settings, self.model)
        if self.run is not None:
            return self.run.eval_folder(self.benchmark.name, how) / "predictions"
        place = self.info.path if self.info.path.is_dir() else self.info.path.with_suffix("")
        return place / "eval" / self.benchmark.name / how / "predictions"

    def origin(self) -> dict[str, Any]:
        """``run`` and ``config`` for the results; the predictions themselves say the rest."""
        cma = self.model.cma
        config = {"cma": cma.enabled, "topk": cma.topk, "mba": cma.mba, "seed": self.info.run_config.get("seed")}
        # Runs that differ in an option are no repetitions of each other.
        config |= cma.model_dump(mode="json", exclude_defaults=True, include=_OPTIONS)
        return {"run": self.run.name if self.run else None, "config": config}

    def record(self) -> dict[str, Any]:
        """What ``prediction.json`` says, but for the precision; reads the whole checkpoint for its hash."""
        settings = resolved(self.settings, self.model)
        record = {
            "schema": SCHEMA,
            "salma": salmacli.__version__,
            "benchmark": self.benchmark.name,
            "split": self.benchmark.split,
            "mode": settings.mode,
            "synthetic": self.benchmark.synthetic,
            "data": describe_set(self.benchmark)["sha256"],
            "checkpoint": self.info.record(),
            "settings": changed(self.settings, self.model),
            "resolved": changing(settings),
            "speed": speed(settings),
        }
        if settings.mode == "sa2va":
            record["by_side"] = self.model.sam2.image_size  # who reads the logits must go the same way
        return record


def plan(run: RunFolder | None, benchmark: Benchmark, settings: PredictConfig, checkpoint: Path | None = None) -> Job:
    """Find out what is to be predicted, and whatever is wrong with it that shows without the model.

    Args:
        run: Gives the checkpoint, its newest, and the folder.
        benchmark: What to predict.
        settings: How.
        checkpoint: Instead of a run; its evaluations lie in its own folder.

    Raises:
        UsageError: Both or none of run and checkpoint are named.
        DataError: An expression is empty.
        ConfigError: The settings contradict each other in the model's mode.
        CheckpointError: There is no such checkpoint, or it is broken.
    """
    empty = [f"{v.name}/{e.id}" for v in benchmark.videos for e in v.expressions if not e.text.strip()]
    if empty:
        more = ", …" if len(empty) > _NAMED else ""
        raise DataError(
            f"{len(empty)} expressions of {benchmark.name} {benchmark.split} in {benchmark.root} are empty:"
            f" {', '.join(empty[:_NAMED])}{more}",
            "write what they mean, or take them out",
        )
    info, contents = open_checkpoint(_checkpoint(run, checkpoint))
    if settings.precision == _precision("auto", _best_device()):
        settings = settings.model_copy(update={"precision": "auto"})  # the same evaluation, in the same folder
    job = Job(benchmark, info, config_of(contents, info.path), settings, run)
    resolved(settings, job.model)
    return job


def predict_benchmark(
    job: Job, *, save_logits: bool = False, progress: Progress | None = None, load: Load | None = None
) -> None:
    """Predict what is not on disk yet, one file per video; other processes of the same launch do their share.

    What another checkpoint, split or setting left in the folder is set aside, and said. A video that cannot be
    predicted is written down there, and the others go on; see :func:`refuse_failed`.

    Args:
        job: Of :func:`plan`.
        save_logits: Also keep the mask logits, which `threshold-sweep` needs.
        progress: Who is told; of several processes only the main one tells.
        load: Makes the predictor, which is asked for only when a video is open.

    Raises:
        SalmaError: What stopped a process, in all of them; or another evaluation has claimed the folder meanwhile.
    """
    with group() as here:
        told = progress if progress is not None and here.main else Silent()
        # One process decides: the others may see files that it has written meanwhile, or a newer checkpoint.
        claimed = here.together(lambda: _claim(job, here.device, save_logits, told) if here.main else ({}, set()))
        record, names = claimed[0]
        left = [video for video in job.benchmark.videos if video.name in names]
        order = share([len(video.frames) * len(video.expressions) for video in left], here.ranks)[here.rank]
        mine = [left[position] for position in order]
        failed = here.together(lambda: _predict(job, mine, record, here, save_logits, told, load))
        reasons = {name: reason for of_one in failed for name, reason in of_one.items()}
        ordered = {video.name: reasons[video.name] for video in left if video.name in reasons}
        # Nobody leaves before the record is whole.
        here.together(lambda: finish(job.folder, record, ordered) if here.main else None)


def ensure_predictions(
    run: RunFolder | None,
    benchmark: Benchmark,
    settings: PredictConfig = PredictConfig(),  # noqa: B008 - it is frozen
    *,
    checkpoint: Path | None = None,
    save_logits: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Predict whatever an evaluation's folder lacks; see :func:`plan` and :func:`predict_benchmark`.

    Returns:
        The predictions folder, and ``run`` and ``config`` for the results.

    Raises:
        DataError: Videos could not be predicted; the others are there.
    """
    job = plan(run, benchmark, settings, checkpoint)
    predict_benchmark(job, save_logits=save_logits, progress=progress)
    refuse_failed(job.folder, benchmark.name)
    return job.folder, job.origin()


def load_model(
    run: RunFolder | None,
    checkpoint: Path | None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str | torch.device | None = None,
) -> tuple[Salma, CheckpointInfo]:
    """The named checkpoint, or the newest of a run.

    Args:
        run: See `checkpoint`; one of the two.
        checkpoint: A folder, a file or a hub id.
        precision: Of the weights; auto is bf16 where the device computes in it.
        device: None takes the best one there is.

    Raises:
        UsageError: Both or none are named.
        CheckpointError: It cannot be loaded.
    """
    device = torch.device(device or _best_device())
    if device.type == "cuda" and _precision(precision, device) == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # or convolutions would have 10 bits, and fp32 be none
    dtype = torch.bfloat16 if _precision(precision, device) == "bf16" else torch.float32
    return load_checkpoint(_checkpoint(run, checkpoint), device, dtype)


def _best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _checkpoint(run: RunFolder | None, checkpoint: Path | None) -> Path:
    if (run is None) == (checkpoint is None):
        raise UsageError("a run or a checkpoint says which model", "give one of --run and --checkpoint")
    return run.newest_checkpoint() if run is not None else checkpoint  # type: ignore[return-value]


def _precision(precision: str, device: torch.device) -> str:
    """Of the weights: fp32 or bf16."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def _claim(job: Job, device: torch.device, save_logits: bool, progress: Progress) -> tuple[dict[str, Any], set[str]]:
    """Take the folder; what its record says, and the names of the videos that are open."""
    record = job.record()
    resolved_settings = record["resolved"]
    begun = read_record(job.folder)
    best = _precision(job.settings.precision, device)
    resolved_settings["precision"] = begun.get("resolved", {}).get("precision")
    # What was begun in one precision goes on in it unless the user says otherwise, even on another device.
    if job.settings.precision != "auto" or not same(begun, record):
        resolved_settings["precision"] = best
    claim(job.folder, record, progress)
    left = {video.name for video in job.benchmark.videos if not done(job.folder, video, save_logits)}
    if left and resolved_settings["precision"] != best:
        progress.say(f"going on in {resolved_settings['precision']}, in which these predictions were begun")
    return record, left


def _predict(
    job: Job,
    videos: Sequence[Video],
    record: dict[str, Any],
    here: Group,
    save_logits: bool,
    progress: Progress,
    load: Load | None,
) -> dict[str, str]:
    """Predict videos; the names of those that cannot be, and why."""
    if not videos:
        return {}
    settings = job.settings.model_copy(update={"precision": record["resolved"]["precision"]})
    predictor = (load or _load)(Path(record["checkpoint"]["path"]), settings, here.device, progress)
    left = sum(len(video.frames) for video in videos)
    if here.ranks > 1:
        progress.start(f"predicting {job.benchmark.name}, frames of process 1 of {here.ranks}", left)
    else:
        total = sum(len(video.frames) for video in job.benchmark.videos)
        progress.start(f"predicting {job.benchmark.name}, frames", total, total - left)
    failed = {}
    try:
        for video in videos:
            reason = _predict_video(job, video, predictor, record, save_logits, progress)
            if reason is not None:
                failed[video.name] = reason
    finally:
        progress.finish()
    return failed


def _predict_video(
    job: Job, video: Video, predictor: Predictor, record: dict[str, Any], save_logits: bool, progress: Progress
) -> str | None:
    """Predict one video and write it, or say why that cannot be."""
    seen = 0

    def advance(frames: int) -> None:
        nonlocal seen
        seen += frames
        progress.advance(frames)

    try:
        frames = job.benchmark.frames(video)
        texts = [expression.text for expression in video.expressions]
        tracks = predictor.video(frames, texts, keep_logits=save_logits, advance=advance) if texts else []
        size = frames.size
    except SalmaError as error:
        progress.say(f"{video.name} could not be predicted: {error}")
        return str(error)
    finally:
        progress.advance(len(video.frames) - seen)
    check_ours(job.folder, record)
    write(job.folder, video, size, tracks, save_logits)
    return None


def _load(checkpoint: Path, settings: PredictConfig, device: torch.device, progress: Progress) -> Predictor:
    model, _ = load_model(None, checkpoint, settings.precision, device)
    return Predictor(model, settings, progress.say)
