"""Videos and sentences → masks on disk.

Per video, frames are read and encoded once and shared by every expression; a video is a unit of work that is either on
disk whole or not at all, so that an interrupted prediction goes on after the last finished one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmacli.checkpoints.load import CheckpointInfo, load_checkpoint
from salmacli.config.files import read_json, safe_name, write_atomic, write_json
from salmacli.data import rle
from salmacli.data.benchmarks import Benchmark
from salmacli.data.conversation import answer_ids, branch, prefix
from salmacli.data.frames import read_frame
from salmacli.data.records import Video
from salmacli.engine.progress import Progress, Silent
from salmacli.engine.run_folder import RunFolder
from salmacli.engine.sights import Mode, Shown, question, to_language, to_sam2
from salmacli.engine.sources import describe
from salmacli.errors import DataError, UsageError
from salmacli.models.grounding import Decodable, FrameFeatures, Masks
from salmacli.models.sa2va import propagate_as_sa2va
from salmacli.models.salma import Language, Salma

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
        embedding: (C,) projected state at `[SEG]`; None likewise.
        frames: T.
        size: (H, W) of the frames.
        side: S, of SAM 2's frames.
        by_side: whether masks are resized to S × S before they are resized to the frame, as the released Sa2VA does.
    """

    text: str
    answer: str
    logits: Tensor | None
    embedding: Tensor | None
    frames: int
    size: tuple[int, int]
    side: int
    by_side: bool

    def masks(self) -> np.ndarray:
        """(T, H, W) bool: logits resized to the frame, above 0."""
        if self.logits is None:
            return np.zeros((self.frames, *self.size), bool)
        return np.concatenate([self._masks(part) for part in self.logits.split(FRAMES_AT_ONCE)])

    def _masks(self, logits: Tensor) -> np.ndarray:
        steps = [(self.side, self.side), self.size] if self.by_side else [self.size]
        for size in steps:
            logits = resized(logits, size)
        return (logits > 0).cpu().numpy()


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, h, w) mask logits at another size, bilinear."""
    return F.interpolate(logits.unsqueeze(1), size, mode="bilinear", align_corners=False)[:, 0]


class Predictor:
    """Segments videos with one model in one mode.

    Args:
        model: in any state; it is put into evaluation mode.
        mode: "frames" decodes every frame with language; "consistent" decodes K evenly spread frames with language and
            carries their masks to the others through SAM 2's memory; "sa2va" is the released Sa2VA: the first K frames,
            and its own use of the memory.

    Raises:
        UsageError: the weights are not float32.
    """

    def __init__(self, model: Salma, mode: Mode) -> None:
        if model.dtype != torch.float32:  # SAM 2 makes tensors of its own in float32, which do not mix with others
            raise UsageError(f"prediction runs in float32, and the weights are {model.dtype}", "load them as float32")
        self.model, self.mode = model.eval(), mode

    @torch.inference_mode()
    def video(
        self,
        frames: Sequence[np.ndarray],
        texts: Sequence[str],
        *,
        still: bool = False,
        answer: str | None = None,
    ) -> list[Track]:
        """Segment what each text means.

        Args:
            frames: T times uint8 (H, W, 3), all of one size.
            texts: E expressions.
            still: the one frame is a picture, not a video; mode "sa2va" then shows it to the LLM in tiles.
            answer: what the LLM answers, instead of its own words.

        Raises:
            DataError: there are no frames, or a text is empty.
        """
        if not len(frames):
            raise DataError("the video has no frames", "check the folder")
        if any(not text.strip() for text in texts):
            raise DataError("an expression is empty", "say what to segment")
        shown = to_language(self.model, self.mode, frames, still)
        language, answers, found = self._language(shown, texts, answer)
        logits = self._logits(self._features(frames), language, list(shown.prompted))
        size = (int(frames[0].shape[0]), int(frames[0].shape[1]))
        return [
            Track(
                text=text,
                answer=said,
                logits=logits[row] if row is not None else None,
                embedding=language.seg[row] if row is not None else None,
                frames=len(frames),
                size=size,
                side=self.model.config.sam2.image_size,
                by_side=self.mode == "sa2va",
            )
            for text, said, row in zip(texts, answers, _rows(found), strict=True)
        ]

    def _language(self, shown: Shown, texts: Sequence[str], answer: str | None) -> tuple[Language, list[str], Tensor]:
        """Ask the LLM: language of the O expressions whose answer has a `[SEG]`, all answers, and which those are."""
        model, device = self.model, self.model.device
        mllm, tokenizer = model.mllm, model.tokenizer
        start = torch.from_numpy(prefix(tokenizer, mllm.chat, shown.pictures)).to(device)
        asked = [branch(tokenizer, mllm.chat, text, question(self.mode, text), None) for text in texts]
        questions = [torch.from_numpy(one.ids).to(device) for one in asked]
        forced = None if answer is None else [torch.tensor(answer_ids(tokenizer, answer), device=device)] * len(texts)
        frames = mllm.encode_frames(shown.pixels.to(device))
        out = mllm.answer(start, frames, questions, MAX_NEW_TOKENS, forced=forced)
        columns = [torch.from_numpy(np.flatnonzero(one.words)).to(device) for one in asked]
        padded = nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=-1)
        rows = torch.arange(len(texts), device=device).unsqueeze(1)
        words = out.words[rows, padded.clamp(min=0)]
        language = model.language(out.seg[out.found], words[out.found], (padded >= 0)[out.found])
        return language, [tokenizer.decode(ids).strip() for ids in out.ids], out.found

    def _features(self, frames: Sequence[np.ndarray]) -> FrameFeatures:
        """SAM 2 features of every frame, each computed once."""
        chunks = [
            self.model.grounding.encode(
                to_sam2(self.model, self.mode, frames[start : start + FRAMES_AT_ONCE]).to(self.model.device)
            )
            for start in range(0, len(frames), FRAMES_AT_ONCE)
        ]
        return FrameFeatures(
            torch.cat([chunk.stride4 for chunk in chunks]),
            torch.cat([chunk.stride8 for chunk in chunks]),
            torch.cat([chunk.stride16 for chunk in chunks]),
            chunks[0].position,
        )

    def _logits(self, features: FrameFeatures, language: Language, prompted: list[int]) -> Tensor:
        """(O, T, S/4, S/4) float32 mask logits of the expressions with a `[SEG]`."""
        side, objects = self.model.config.sam2.image_size // 4, len(language.seg)
        if not objects:
            return torch.zeros(0, len(features), side, side)
        given = self._prompted(features, language, prompted)
        if self.mode == "sa2va":
            best_of_three = self.model.config.mask_token == "best-of-three"
            return propagate_as_sa2va(self.model.grounding, features, given, best_of_three).transpose(0, 1)
        logits = [masks.logits.float() for masks in given]
        if self.mode == "frames":
            return torch.stack(logits, dim=1)
        by_frame = dict(zip(prompted, logits, strict=True))
        return self.model.grounding.propagate(features, by_frame).transpose(0, 1)

    def _prompted(self, features: FrameFeatures, language: Language, prompted: list[int]) -> list[Masks]:
        """Masks of the frames that are decoded with language, O rows each."""
        device, objects = self.model.device, len(language.seg)
        chosen = features if len(prompted) == len(features) else features.at(torch.tensor(prompted, device=device))
        frames = self.model.grounding.decodable(chosen)
        prior = self._prior(frames) if self.model.cma is not None else None
        pairs = torch.cartesian_prod(torch.arange(len(prompted)), torch.arange(objects)).view(-1, 2).to(device)
        chunks = [
            self.model.decode(frames, prior, language, frame_of=part[:, 0], object_of=part[:, 1])
            for part in pairs.split(MASKS_AT_ONCE)
        ]
        whole = [torch.cat(parts).split(objects) for parts in zip(*(chunk.parts() for chunk in chunks), strict=True)]
        return [Masks(*parts) for parts in zip(*whole, strict=True)]

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
    if predictor.mode == "sa2va":
        record["by_side"] = predictor.model.config.sam2.image_size  # who reads the logits must go the same way
    _claim(folder, record, progress)
    open_videos = [video for video in benchmark.videos if not _done(folder, video, save_logits)]
    total = sum(len(video.expressions) for video in benchmark.videos)
    left = sum(len(video.expressions) for video in open_videos)
    progress.start(f"predicting {benchmark.name}", total, total - left)
    try:
        for video in open_videos:
            frames = [read_frame(benchmark.frame_path(video, frame)) for frame in video.frames]
            texts = [expression.text for expression in video.expressions]
            tracks = predictor.video(frames, texts, still=benchmark.still)
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
