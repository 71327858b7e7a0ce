"""Clips → the tensors of a training step. The only module of this room that knows torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from salmacli.data.conversation import IGNORE, INTERNVL, ChatFormat, Packed, branch, pack, prefix
from salmacli.data.mixing import BadClip, Clip

# The mean and the deviation that ImageNet-trained encoders expect; InternVL and SAM 2 share them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Batch:
    """B videos of a training step with their O expressions and P = frames × expressions masks.

    Attributes:
        mllm_pixels: (B·K, 3, h, w) normalised frames for the LLM.
        sam_pixels: (F, 3, S, S) normalised frames to segment.
        ids, positions, labels: (B, L) packed conversations.
        attention: (B, L, L) who sees whom.
        seg_rows, seg_columns: (O,) where each object's `[SEG]` stands.
        words: (O, N) columns of each expression's tokens; −1 is padding.
        frame_of, object_of: (P,) which frame and which object each mask belongs to.
        identity: (P,) equal where two masks show the same object, be it in other words or another frame.
        targets: (P, S, S) bool, the true masks.
        foreground: (F, S, S) bool, all annotated objects of each frame.
    """

    mllm_pixels: Tensor
    sam_pixels: Tensor
    ids: Tensor
    positions: Tensor
    labels: Tensor
    attention: Tensor
    seg_rows: Tensor
    seg_columns: Tensor
    words: Tensor
    frame_of: Tensor
    object_of: Tensor
    identity: Tensor
    targets: Tensor
    foreground: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def to_pixels(
    frames: Sequence[np.ndarray],
    size: tuple[int, int],
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Tensor:
    """Resize (aspect not kept) and normalise frames, in float32.

    Args:
        frames: F times uint8 (H, W, 3); sizes may differ between them.
        size: (height, width) of the result.
        mean, std: per colour, of values in [0, 1].

    Returns:
        (F, 3, height, width).
    """
    stacked = [
        F.interpolate(
            torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float(),
            size,
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        for frame in frames
    ]
    return (torch.cat(stacked) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@dataclass(frozen=True)
class Collator:
    """Makes one `Batch` of several clips.

    Attributes:
        tokenizer: of the model.
        mllm_size: (height, width) of the LLM's frames.
        tokens_per_frame: placeholders per frame.
        sam_size: S, side of SAM 2's frames.
        chat: how the LLM is shown pictures.
        mean, std: what the LLM's frames are normalised with.
    """

    tokenizer: PreTrainedTokenizerFast
    mllm_size: tuple[int, int]
    tokens_per_frame: int
    sam_size: int
    chat: ChatFormat = INTERNVL
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __call__(self, clips: Sequence[Clip | BadClip]) -> tuple[Batch | None, list[BadClip]]:
        """Batch the readable clips and hand on the others; the batch is None when none is readable."""
        bad = [clip for clip in clips if isinstance(clip, BadClip)]
        good = [clip for clip in clips if isinstance(clip, Clip)]
        return (self.batch(good) if good else None), bad

    def batch(self, clips: Sequence[Clip]) -> Batch:
        """Batch clips that are all readable."""
        rows = [self._conversation(clip) for clip in clips]
        frame_of, object_of, targets, foreground = self._masks(clips)
        names = [(n, target) for n, clip in enumerate(clips) for target in clip.targets]
        identity = torch.tensor([names.index(name) for name in names])[object_of]
        length = max(len(row.ids) for row in rows)
        words = [np.flatnonzero(row.words & (row.branch == n)) for row in rows for n in range(len(row.segs))]
        return Batch(
            mllm_pixels=torch.cat([to_pixels(clip.shown, self.mllm_size, self.mean, self.std) for clip in clips]),
            sam_pixels=torch.cat([to_pixels(clip.frames, (self.sam_size, self.sam_size)) for clip in clips]),
            ids=_padded([row.ids for row in rows], length, self.tokenizer.pad_token_id or 0),
            positions=_padded([row.positions for row in rows], length, 0),
            labels=_padded([row.labels for row in rows], length, IGNORE),
            attention=_visibility([row.branch for row in rows], length),
            seg_rows=torch.tensor([n for n, row in enumerate(rows) for _ in row.segs]),
            seg_columns=torch.tensor([column for row in rows for column in row.segs]),
            words=_padded(words, max(len(row) for row in words), -1),
            frame_of=frame_of,
            object_of=object_of,
            identity=identity,
            targets=targets,
            foreground=foreground,
        )

    def _conversation(self, clip: Clip) -> Packed:
        start = prefix(self.tokenizer, self.chat, [self.tokens_per_frame] * len(clip.shown))
        turns = zip(clip.expressions, clip.questions, clip.answers, strict=True)
        return pack(start, [branch(self.tokenizer, self.chat, *turn) for turn in turns])

    def _masks(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every expression of a clip is segmented in every decoded frame of that clip."""
        frame_of, object_of, targets, foreground = [], [], [], []
        frames = objects = 0
        for clip in clips:
            grid = [(f, o) for o in range(len(clip.expressions)) for f in range(len(clip.frames))]
            frame_of += [frames + f for f, _ in grid]
            object_of += [objects + o for _, o in grid]
            frames, objects = frames + len(clip.frames), objects + len(clip.expressions)
            targets.append(self._resized(clip.masks.reshape(-1, *clip.masks.shape[-2:])))
            foreground.append(self._resized(clip.foreground))
        return torch.tensor(frame_of), torch.tensor(object_of), torch.cat(targets), torch.cat(foreground)

    def _resized(self, masks: np.ndarray) -> Tensor:
        """(P, H, W) bool → (P, S, S) bool; a pixel belongs to the mask that covers most of it."""
        size = (self.sam_size, self.sam_size)
        soft = F.interpolate(
            torch.from_numpy(masks).unsqueeze(1).float(),
            size,
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        return soft[:, 0] > 0.5


def _padded(rows: Sequence[np.ndarray], length: int, value: int) -> Tensor:
    """(B, length) int64 of rows of several lengths."""
    out = np.full((len(rows), length), value, np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(out)


def _visibility(branches: Sequence[np.ndarray], length: int) -> Tensor:
    """(B, L, L): a token sees what came before it in the prefix and in its own branch, and padding sees itself."""
    number = _padded(branches, length, -2)
    query, key = number.unsqueeze(2), number.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    # A row of a softmax must see something; padding sees itself and is read by nobody.
    return (causal & ((key == -1) | (key == query)) & (query != -2)) | torch.eye(length, dtype=torch.bool)
