"""Videos and sentences → masks on disk.

Per video, frames are read and encoded once and shared by every expression; a video is a unit of work that is either on
disk whole or not at all, so that an interrupted prediction goes on after the last finished one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmacli.checkpoints.load import CheckpointInfo, load_checkpoint
from salmacli.config.files import read_json, safe_name, write_atomic, write_json
from salmacli.data import rle
from salmacli.data.benchmarks import Benchmark
from salmacli.data.collate import to_pixels
from salmacli.data.conversation import INTERNVL, branch, prefix
from salmacli.data.frames import read_frame
from salmacli.data.mixing import evenly
from salmacli.data.records import Video
from salmacli.data.templates import QUESTIONS
from salmacli.engine.progress import Progress, Silent
from salmacli.engine.run_folder import RunFolder
from salmacli.engine.sources import describe
from salmacli.errors import DataError, UsageError
from salmacli.models.grounding import Decodable, FrameFeatures
from salmacli.models.salma import Language, Salma

Mode = Literal["frames", "consistent"]
SCHEMA = 1
MAX_NEW_TOKENS = 32
FRAMES_AT_ONCE = 16
MASKS_AT_ONCE = 128


@dataclass(frozen=True)
class Track:
    """One expression through one video.

    Attributes:
        text, answer: what was asked and what the LLM said.
        logits: (T, S/4, S/4) float32 mask logits; None when the answer has no `[SEG]`.
        size: (H, W) of the frames.
    """

    text: str
    answer: str
    logits: Tensor | None
    frames: int
    size: tuple[int, int]

    def masks(self) -> np.ndarray:
        """(T, H, W) bool: logits resized to the frame, above 0."""
        if self.logits is None:
            return np.zeros((self.frames, *self.size), bool)
        resized = F.interpolate(self.logits.unsqueeze(1), self.size, mode="bilinear", align_corners=False)
        return (resized[:, 0] > 0).cpu().numpy()


class Predictor:
    """Segments videos with one model in one mode.

    Args:
        model: in any state; it is put into evaluation mode.
        mode: "frames" decodes every frame with language; "consistent" decodes K evenly spread frames with language and
            carries their masks to the others through SAM 2's memory.
    """

    def __init__(self, model: Salma, mode: Mode) -> None:
        self.model, self.mode = model.eval(), mode

    @torch.inference_mode()
    def video(self, frames: Sequence[np.ndarray], texts: Sequence[str]) -> list[Track]:
        """Segment what each text means.

        Args:
            frames: T times uint8 (H, W, 3), all of one size.
            texts: E expressions.

        Raises:
            DataError: there are no frames, or a text is empty.
        """
        if not len(frames):
            raise DataError("the video has no frames", "check the folder")
        if any(not text.strip() for text in texts):
            raise DataError("an expression is empty", "say what to segment")
        size = (int(frames[0].shape[0]), int(frames[0].shape[1]))
        conditioning = evenly(len(frames), self.model.config.clip_frames)
        language, answers, found = self._language([frames[n] for n in conditioning], texts)
        features = self._features(frames)
        logits = self._logits(features, language, found, sorted({int(n) for n in conditioning}))
        return [
            Track(text, answer, logits[row] if row is not None else None, len(frames), size)
            for text, answer, row in zip(texts, answers, _rows(found), strict=True)
        ]

    def _language(self, shown: Sequence[np.ndarray], texts: Sequence[str]) -> tuple[Language, list[str], Tensor]:
        """Ask the LLM: language of the O expressions whose answer has a `[SEG]`, all answers, and which those are."""
        model, device = self.model, self.model.device
        mllm, tokenizer = model.mllm, model.tokenizer
        pixels = to_pixels(shown, mllm.frame_size).to(device)
        start = torch.from_numpy(prefix(tokenizer, INTERNVL, [mllm.tokens_per_frame] * len(shown))).to(device)
        asked = [branch(tokenizer, INTERNVL, text, QUESTIONS[0], None) for text in texts]
        questions = [torch.from_numpy(one.ids).to(device) for one in asked]
        out = mllm.answer(start, mllm.encode_frames(pixels), questions, MAX_NEW_TOKENS)
        columns = [torch.from_numpy(np.flatnonzero(one.words)).to(device) for one in asked]
        padded = nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=-1)
        rows = torch.arange(len(texts), device=device).unsqueeze(1)
        words = out.words[rows, padded.clamp(min=0)]
        language = model.language(out.seg[out.found], words[out.found], (padded >= 0)[out.found])
        return language, [tokenizer.decode(ids).strip() for ids in out.ids], out.found

    def _features(self, frames: Sequence[np.ndarray]) -> FrameFeatures:
        """SAM 2 features of every frame, each computed once."""
        side = self.model.config.sam2.image_size
        chunks = [
            self.model.grounding.encode(
                to_pixels(frames[start : start + FRAMES_AT_ONCE], (side, side)).to(self.model.device)
            )
            for start in range(0, len(frames), FRAMES_AT_ONCE)
        ]
        return FrameFeatures(
            torch.cat([chunk.stride4 for chunk in chunks]),
            torch.cat([chunk.stride8 for chunk in chunks]),
            torch.cat([chunk.stride16 for chunk in chunks]),
            chunks[0].position,
        )

    def _logits(self, features: FrameFeatures, language: Language, found: Tensor, conditioning: list[int]) -> Tensor:
        """(O, T, S/4, S/4) float32 mask logits of the expressions with a `[SEG]`."""
        side = self.model.config.sam2.image_size // 4
        objects = int(found.sum())
        if not objects:
            return torch.zeros(0, len(features), side, side)
        decoded = list(range(len(features))) if self.mode == "frames" else conditioning
        frames = self.model.grounding.decodable(features)
        prior = self._prior(frames) if self.model.cma is not None else None
        pairs = torch.cartesian_prod(torch.arange(objects), torch.tensor(decoded)).view(-1, 2).to(self.model.device)
        chunks = [
            self.model.decode(frames, prior, language, frame_of=part[:, 1], object_of=part[:, 0]).logits.float()
            for part in pairs.split(MASKS_AT_ONCE)
        ]
        logits = torch.cat(chunks).view(objects, len(decoded), side, side)
        if self.mode == "frames":
            return logits
        given = {frame: logits[:, n] for n, frame in enumerate(decoded)}
        return self.model.grounding.propagate(features, given).transpose(0, 1)

    def _prior(self, frames: Decodable) -> Tensor:
        numbers = torch.arange(len(frames), device=self.model.device)
        return torch.cat([self.model.prior(frames.at(part)) for part in numbers.split(FRAMES_AT_ONCE)])


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
    _claim(folder, record, progress)
    open_videos = [video for video in benchmark.videos if not _done(folder, video, save_logits)]
    total = sum(len(video.expressions) for video in benchmark.videos)
    left = sum(len(video.expressions) for video in open_videos)
    progress.start(f"predicting {benchmark.name}", total, total - left)
    try:
        for video in open_videos:
            frames = [read_frame(benchmark.frame_path(video, frame)) for frame in video.frames]
            tracks = predictor.video(frames, [expression.text for expression in video.expressions])
            _write(folder, video, tracks, save_logits)
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


def _claim(folder: Path, record: dict[str, Any], progress: Progress) -> None:
    """Make sure that what is in the folder was predicted as `record` says, or set it aside."""
    path = folder / "prediction.json"
    if path.exists():
        if _identity(read_json(path)) == _identity(record):
            return
        aside = _free_name(folder)
        folder.rename(aside)
        progress.say(f"{folder} held predictions of another checkpoint, split or data; they are now in {aside}")
    write_json(path, {**record, "complete": False})


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    """What makes predictions the same: not where the checkpoint lies, but what it holds."""
    checkpoint = {key: value for key, value in record.get("checkpoint", {}).items() if key != "path"}
    return {**{key: value for key, value in record.items() if key != "complete"}, "checkpoint": checkpoint}


def _free_name(folder: Path) -> Path:
    return next(path for n in range(1, 10_000) if not (path := folder.with_name(f"{folder.name}.old-{n}")).exists())


def _done(folder: Path, video: Video, save_logits: bool) -> bool:
    name = safe_name(video.name, "a video's name")
    # The logits are written first, so a video's JSON promises that they are whole.
    return (folder / f"{name}.json").exists() and (not save_logits or (folder / f"{name}.npz").exists())


def _write(folder: Path, video: Video, tracks: Sequence[Track], save_logits: bool) -> None:
    name = safe_name(video.name, "a video's name")
    if save_logits:
        buffer = io.BytesIO()
        arrays = {
            expression.id: track.logits.cpu().numpy()
            for expression, track in zip(video.expressions, tracks, strict=True)
            if track.logits is not None
        }
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_atomic(folder / f"{name}.npz", buffer.getvalue())
    expressions = {}
    for expression, track in zip(video.expressions, tracks, strict=True):
        masks = track.masks()
        fallback = "no-seg" if track.logits is None else None if masks.any() else "empty"
        expressions[expression.id] = {
            "text": expression.text,
            "answer": track.answer,
            "fallback": fallback,
            "masks": [rle.encode(mask)["counts"] for mask in masks],
        }
    write_json(
        folder / f"{name}.json",
        {
            "schema": SCHEMA,
            "video": video.name,
            "size": list(tracks[0].size) if tracks else [0, 0],
            "frames": list(video.frames),
            "expressions": expressions,
        },
    )


def _rows(found: Tensor) -> Iterator[int | None]:
    """Per expression its row among those that were found."""
    row = 0
    for one in found.tolist():
        yield row if one else None
        row += int(one)
