"""SAM 2 features of a video: every frame is read once and encoded once, and few are held at any time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch

from salmacli.data.frames import FrameSource
from salmacli.engine.prediction.batches import BatchSize
from salmacli.engine.prediction.sights import Mode, to_sam2
from salmacli.models.grounding import FrameFeatures
from salmacli.models.salma import Salma


class VideoFeatures:
    """Features of one video's frames, whoever asks for them.

    Frames are read ahead in threads, and encoded batch by batch. A batch is gone when the next one comes, but for the
    frames that are held.

    Args:
        model: encodes.
        mode: decides what SAM 2 is shown.
        frames: the video.
        batch: frames per encoder pass.
        readers: threads that read ahead.

    Attributes:
        encoded: frames encoded so far.
    """

    def __init__(self, model: Salma, mode: Mode, frames: FrameSource, batch: BatchSize, readers: int) -> None:
        self.model, self.mode, self.frames, self.batch, self.readers = model, mode, frames, batch, readers
        self.encoded = 0
        self._held: dict[int, FrameFeatures] = {}

    def hold(self, numbers: Sequence[int], pictures: Mapping[int, np.ndarray] | None = None) -> dict[int, np.ndarray]:
        """Encode frames and keep them.

        Args:
            numbers: which; those that are held already stay as they are.
            pictures: frames that were read already, (H, W, 3) uint8.

        Returns:
            The frames that had to be read.
        """
        known = pictures or {}
        wanted = [number for number in dict.fromkeys(numbers) if number not in self._held]
        missing = [number for number in wanted if number not in known]
        frames = self.frames.read(missing, threads=self.readers)
        read: dict[int, np.ndarray] = {}
        start = 0
        while start < len(wanted):
            group = wanted[start : start + self.batch.size]  # which may become smaller on the way
            start += len(group)
            read.update((number, next(frames)) for number in group if number not in known)
            pixels = to_sam2(self.model, self.mode, [known[n] if n in known else read[n] for n in group])
            encoded = self._encode(pixels)
            self._held.update((number, _own(encoded, row)) for row, number in enumerate(group))
        return read

    def keep(self, numbers: Collection[int]) -> None:
        """Let go of all held frames but these."""
        self._held = {number: features for number, features in self._held.items() if number in numbers}

    def at(self, numbers: Sequence[int]) -> FrameFeatures:
        """Frames that are held."""
        return FrameFeatures.cat([self._held[number] for number in numbers])

    def stream(self, numbers: Sequence[int], keep: Collection[int] = ()) -> Iterator[tuple[list[int], FrameFeatures]]:
        """Frames batch by batch, in order; those in `keep` are held afterwards."""
        missing = [number for number in numbers if number not in self._held]
        pixels = self.frames.read(missing, lambda frame: to_sam2(self.model, self.mode, [frame]), self.readers)
        start = 0
        while start < len(numbers):
            group = list(numbers[start : start + self.batch.size])
            start += len(group)
            fresh = [number for number in group if number not in self._held]
            encoded = self._encode(torch.cat([next(pixels) for _ in fresh])) if fresh else None
            rows = {number: encoded.at(slice(row, row + 1)) for row, number in enumerate(fresh) if encoded is not None}
            parts = [rows[number] if number in rows else self._held[number] for number in group]
            if encoded is not None:
                kept = [(row, number) for row, number in enumerate(fresh) if number in keep]
                self._held.update((number, _own(encoded, row)) for row, number in kept)
            yield group, encoded if encoded is not None and fresh == group else FrameFeatures.cat(parts)

    def _encode(self, pixels: torch.Tensor) -> FrameFeatures:
        """Features of (F, 3, S, S) frames."""
        encode = self.model.grounding.encode
        parts = self.batch.over(len(pixels), lambda part: encode(pixels[part].to(self.model.device)))
        features = FrameFeatures.cat(list(parts))
        self.encoded += len(features)
        return features


def _own(features: FrameFeatures, row: int) -> FrameFeatures:
    """A copy of one frame: a slice would keep its whole batch alive."""
    one = features.at(slice(row, row + 1))
    return FrameFeatures(one.stride4.clone(), one.stride8.clone(), one.stride16.clone(), one.position)
