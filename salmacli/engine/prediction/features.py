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
        for start in range(0, len(wanted), self.batch.size):
            group = wanted[start : start + self.batch.size]
            read.update((number, next(frames)) for number in group if number not in known)
            pixels = to_sam2(self.model, self.mode, [known[n] if n in known else read[n] for n in group])
            for number, features in zip(group, self._one_by_one([pixels]), strict=True):
                self._held[number] = _own(features)
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
            ready = dict(zip(fresh, self._one_by_one([next(pixels) for _ in fresh]), strict=True))
            parts = [ready[number] if number in ready else self._held[number] for number in group]
            for number in fresh:
                if number in keep:
                    self._held[number] = _own(ready[number])
            yield group, FrameFeatures.cat(parts)

    def _one_by_one(self, pixels: Sequence[torch.Tensor]) -> Iterator[FrameFeatures]:
        """Encode a batch and take it apart."""
        if not pixels:
            return
        images = torch.cat(list(pixels))
        self.encoded += len(images)
        for features in self.batch.over(len(images), lambda part: self._encode(images[part])):
            for number in range(len(features)):
                yield features.at(slice(number, number + 1))

    def _encode(self, images: torch.Tensor) -> FrameFeatures:
        return self.model.grounding.encode(images.to(self.model.device, non_blocking=True))


def _own(features: FrameFeatures) -> FrameFeatures:
    """A copy: a slice would keep its whole batch alive."""
    stride4, stride8, stride16 = (level.clone() for level in (features.stride4, features.stride8, features.stride16))
    return FrameFeatures(stride4, stride8, stride16, features.position)
