"""Clips → the tensors of a training step. The only module of this room that knows torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from salmacli.data.conversation import IGNORE, INTERNVL, ChatFormat
from salmacli.data.rows import Row, Telling
from salmacli.data.training.clips import BadClip, Clip
from salmacli.errors import DataError

# The mean and the deviation that ImageNet-trained encoders expect; InternVL and SAM 2 share them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Batch:
    """B conversations of a training step, with F frames, O objects and P masks: every object in its clip's frames.

    Masks are ordered clip by clip, in a clip object by object, in an object frame by frame. Everything may be empty but
    the conversations.

    Attributes:
        names: per conversation, the sample; none where a batch has no sample and is a filler.
        mllm_pixels: (N, 3, h, w) normalised frames and tiles for the LLM.
        seen: (G,) for each placeholder of the conversations, in their order, which of the N · tokens language positions
            of `mllm_pixels` stands there.
        ids, positions, labels: (B, L) packed conversations.
        attention: (B, L, L) who sees whom.
        sam_pixels: (F, 3, S, S) normalised frames to segment.
        clip_of: (F,) whose frame each is: rows of `ids`.
        seg_rows, seg_columns: (O,) where each object's `[SEG]` stands.
        words: (O, N) columns of the tokens of what each object is called; −1 is padding.
        frame_of, object_of: (P,) which frame and which object each mask belongs to.
        identity: (P,) equal where two masks show the same object, be it in other words, another frame or another batch.
        targets: (P, S, S) bool, the true masks.
        foreground: (F, S, S) bool, all in each frame that some expression of its sample means, asked or not.
        seeds, frame_seeds: (P,), (F,) of what is drawn for each mask and each frame.
        left_out: objects whose `[SEG]` stood behind the end of what a conversation may hold.
    """

    names: tuple[str, ...]
    mllm_pixels: Tensor
    seen: Tensor
    ids: Tensor
    positions: Tensor
    labels: Tensor
    attention: Tensor
    sam_pixels: Tensor
    clip_of: Tensor
    seg_rows: Tensor
    seg_columns: Tensor
    words: Tensor
    frame_of: Tensor
    object_of: Tensor
    identity: Tensor
    targets: Tensor
    foreground: Tensor
    seeds: Tensor
    frame_seeds: Tensor
    left_out: int = 0

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory from which a GPU copies while it computes; torch's loader asks for it."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        changed: dict[str, Any] = {name: change(value) for name, value in tensors.items()}
        return replace(self, **changed)


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
    if not frames:
        return torch.zeros(0, 3, *size)
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
        tiles: a picture is shown in at most so many.
        max_tokens: longer conversations are cut.
    """

    tokenizer: PreTrainedTokenizerFast
    mllm_size: tuple[int, int]
    tokens_per_frame: int
    sam_size: int
    chat: ChatFormat = INTERNVL
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    tiles: int = 1
    max_tokens: int = 8192

    def __call__(self, clips: Sequence[Clip | BadClip]) -> tuple[Batch, list[BadClip]]:
        """Batch the clips that can be told and hand on the others; without any, the batch holds a filler."""
        rows, bad, telling = list[Row](), list[BadClip](), self._telling
        for clip in clips:
            if isinstance(clip, BadClip):
                bad.append(clip)
                continue
            try:
                rows.append(telling.row(clip))
            except DataError as error:
                bad.append(BadClip(clip.name, str(error)))
        return self._batch(rows), bad

    def batch(self, clips: Sequence[Clip]) -> Batch:
        """Batch clips that can all be told.

        Raises:
            DataError: one cannot.
        """
        telling = self._telling
        return self._batch([telling.row(clip) for clip in clips])

    @property
    def _telling(self) -> Telling:
        return Telling(self.tokenizer, self.chat, self.mllm_size, self.tokens_per_frame, self.tiles, self.max_tokens)

    def _batch(self, rows: Sequence[Row]) -> Batch:
        talks = [row.talk for row in rows] or [self._telling.filler()]
        length = max(len(talk.ids) for talk in talks)
        parts = [len(row.parts) * self.tokens_per_frame for row in rows]
        seen = [offset + row.seen for offset, row in zip(np.cumsum([0, *parts]), rows, strict=False)]
        phrases = [phrase for talk in talks for phrase in talk.phrases]
        return Batch(
            names=tuple(row.clip.name for row in rows),
            mllm_pixels=to_pixels([part for row in rows for part in row.parts], self.mllm_size, self.mean, self.std),
            seen=_numbers(seen),
            ids=_padded([talk.ids for talk in talks], length, self.tokenizer.pad_token_id or 0),
            positions=_padded([talk.positions for talk in talks], length, 0),
            labels=_padded([talk.labels for talk in talks], length, IGNORE),
            attention=_visibility([talk.branch for talk in talks], length),
            seg_rows=_numbers([np.full(len(talk.segs), n) for n, talk in enumerate(talks)]),
            seg_columns=_numbers([np.asarray(talk.segs, np.int64) for talk in talks]),
            words=_padded(phrases, max(map(len, phrases), default=0), -1),
            left_out=sum(len(row.clip.targets) - len(row.objects) for row in rows),
            **self._masks(rows),
        )

    def _masks(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """What is segmented: every object of a clip in every decoded frame of that clip."""
        frame_of, object_of, identity, seeds, frame_seeds = [], [], [], [], []
        frames, objects, side = 0, 0, self.sam_size
        targets, foreground = ([torch.zeros(0, side, side, dtype=torch.bool)] for _ in range(2))
        for row in rows:
            clip, kept, count = row.clip, row.objects, len(row.frames)
            if not count:
                continue
            frame_of += [np.tile(np.arange(frames, frames + count), len(kept))]
            object_of += [np.repeat(np.arange(objects, objects + len(kept)), count)]
            identity += [np.repeat([_identity(clip, o) for o in kept], count)]
            seeds += [_seeds(clip.seed, 1 + o, count) for o in kept]
            frame_seeds += [_seeds(clip.seed, 0, count)]
            frames, objects = frames + count, objects + len(kept)
            targets.append(self._resized(clip.masks[list(kept)].reshape(-1, *clip.masks.shape[-2:])))
            foreground.append(self._resized(clip.foreground))
        return {
            "sam_pixels": to_pixels([frame for row in rows for frame in row.frames], (side, side)),
            "clip_of": _numbers([np.full(len(row.frames), n) for n, row in enumerate(rows)]),
            "frame_of": _numbers(frame_of),
            "object_of": _numbers(object_of),
            "identity": _numbers(identity),
            "targets": torch.cat(targets),
            "foreground": torch.cat(foreground),
            "seeds": _numbers(seeds),
            "frame_seeds": _numbers(frame_seeds),
        }

    def _resized(self, masks: np.ndarray) -> Tensor:
        """(P, H, W) bool → (P, S, S) bool; a pixel belongs to the mask that covers most of it."""
        size = (self.sam_size, self.sam_size)
        # In bytes it takes half the time of floats.
        soft = F.interpolate(
            torch.from_numpy(masks.view(np.uint8) * np.uint8(255)).unsqueeze(1),
            size,
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        return soft[:, 0] > 127


def _identity(clip: Clip, number: int) -> int:
    """The same number for the same object, wherever it is visited and in whichever set; below 2^63."""
    told = repr((clip.scene or clip.name, sorted(clip.targets[number])))
    return int.from_bytes(blake2b(told.encode(), digest_size=8).digest(), "big") >> 1


def _seeds(seed: int, what: int, count: int) -> np.ndarray:
    """(count,) seeds below 2^63, a pure function of the arguments."""
    return (np.random.SeedSequence((seed, what)).generate_state(count, np.uint64) >> np.uint64(1)).astype(np.int64)


def _numbers(rows: Sequence[np.ndarray]) -> Tensor:
    """One int64 row of several, or of none."""
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.int64))


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
