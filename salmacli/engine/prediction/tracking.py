"""One window: key frames with language, the other frames with language or through SAM 2's memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from salmacli.config.schema import PredictConfig
from salmacli.engine.prediction.batches import BatchSize
from salmacli.engine.prediction.features import VideoFeatures
from salmacli.engine.prediction.windows import Window
from salmacli.models.grounding import Decodable, FrameFeatures, Masks
from salmacli.models.memory import Memory, MemoryBank, coloured
from salmacli.models.propagation import AsSa2va, AsSam2, Propagation
from salmacli.models.salma import Language, Salma


class Tracker:
    """Masks of O expressions that have a `[SEG]`, in every frame of one window.

    Args:
        model: decodes.
        settings: resolved, see `Predictor`.
        features: of the video.
        language: of O expressions.
        masks: how many are decoded with language at once.
        memories: how many expressions go through the memory at once.
    """

    def __init__(
        self,
        model: Salma,
        settings: PredictConfig,
        features: VideoFeatures,
        language: Language,
        *,
        masks: BatchSize,
        memories: BatchSize,
    ) -> None:
        self.model, self.settings, self.features, self.language = model, settings, features, language
        self.masks, self.memories = masks, memories
        self.objects = len(language.seg)
        self.remembers_masks = settings.cma.temporal_prior and model.cma is not None
        self._masks: dict[int, Tensor] = {}  # logits of frames that a temporal prior may ask for

    def frames(
        self, window: Window, keys: Sequence[int], keep: Collection[int]
    ) -> Iterator[tuple[int, FrameFeatures, Tensor]]:
        """Go through the window.

        Args:
            window: its frames.
            keys: frames that are decoded with language where others are not; in order, and held by the features.
            keep: frames whose features are held afterwards.

        Yields:
            Every frame once, in an order of its own: number, features and (O, S/4, S/4) float32 logits.
        """
        if self.settings.mode == "frames":
            for numbers, group in self.features.stream(window.numbers(), keep):
                for row, masks in enumerate(self._decode(numbers, group)):
                    yield numbers[row], group.at(slice(row, row + 1)), masks.logits.float()
            return
        propagation: Propagation = (
            AsSa2va(self.model.grounding, self.model.config.mask_token == "best-of-three")
            if self.settings.mode == "sa2va"
            else AsSam2(self.model.grounding)
        )
        given: dict[int, Memory] = {}
        prompted = self.features.at(keys)
        for row, masks in enumerate(self._decode(keys, prompted)):
            frame = prompted.at(slice(row, row + 1))
            given[keys[row]] = self._remember(propagation, frame, masks)
            yield keys[row], frame, masks.logits.float()
        backwards, forwards = range(keys[0] - 1, window.start - 1, -1), range(keys[0], window.stop)
        for reverse, others in ((True, backwards), (False, forwards)):
            bank = MemoryBank(
                self.model.grounding,
                given,
                len(window),
                reverse=reverse,
                recent=self.settings.memories,
                conditioning=self.settings.conditioning,
            )
            for numbers, group in self.features.stream([number for number in others if number not in given], keep):
                for row, number in enumerate(numbers):
                    frame = group.at(slice(row, row + 1))
                    yield number, frame, self._follow(propagation, bank, number, frame)

    def _decode(self, numbers: Sequence[int], group: FrameFeatures) -> Iterator[Masks]:
        """Masks of all O expressions in each of F frames, exactly as training makes them."""
        sights = self.model.grounding.decodable(group)
        size = 1 if self.remembers_masks else len(numbers)  # a mask that becomes a prior must be there first
        for start in range(0, len(numbers), size):
            rows = torch.arange(start, start + size, device=self.model.device)
            priors = self._priors(numbers[start : start + size], sights.at(rows), 1)
            pairs = torch.cartesian_prod(rows, torch.arange(self.objects, device=self.model.device)).view(-1, 2)
            masks = Masks.cat(
                list(self.masks.over(len(pairs), lambda part: self._decode_pairs(sights, priors, pairs[part], start)))  # noqa: B023 - called at once
            )
            for row in range(size):
                one = masks.at(slice(row * self.objects, (row + 1) * self.objects))
                self._note(numbers[start + row], one.logits)
                yield one

    def _decode_pairs(self, sights: Decodable, priors: Tensor | None, pairs: Tensor, first: int) -> Masks:
        frame, one = pairs.unbind(1)
        prior = None if priors is None else priors[frame - first, one if priors.shape[1] > 1 else torch.zeros_like(one)]
        return self.model.decode(sights.at(frame), self.language.at(one), prior)

    def _remember(self, propagation: Propagation, frame: FrameFeatures, masks: Masks) -> Memory:
        sight = propagation.sights(frame)
        work = self.memories.over(self.objects, lambda part: propagation.remember(sight, masks.at(part)))
        return Memory.cat(list(work))

    def _follow(self, propagation: Propagation, bank: MemoryBank, number: int, frame: FrameFeatures) -> Tensor:
        """(O, S/4, S/4) logits of a frame that is decoded from memory."""
        grounding, sight = self.model.grounding, propagation.sights(frame)
        priors: Tensor | None = None
        if self.model.cma is not None and self.settings.cma.frames == "all":
            priors = self._priors([number], self.model.grounding.decodable(frame), bank.sign)

        def some(part: slice) -> tuple[Tensor, Memory]:
            image = coloured(grounding, sight.image, frame.position, bank.recall(number, part))
            rows = Decodable.of(image, sight.fine)
            if priors is not None:
                prior = priors[0].expand(self.objects, -1, -1)[part]
                rows = self.model.attend(rows, self.language.at(part), prior)
            masks, memory = propagation.follow(sight.image, rows)
            return propagation.seen(masks), memory

        parts = list(self.memories.over(self.objects, some))
        bank.follow(number, Memory.cat([memory for _, memory in parts]))
        logits = torch.cat([logits for logits, _ in parts])
        self._note(number, logits)
        if number - bank.sign not in bank.given:
            self._masks.pop(number - bank.sign, None)
        return logits

    def _priors(self, numbers: Sequence[int], sights: Decodable, sign: int) -> Tensor | None:
        """(F, O or 1, S/4, S/4) logits of where objects are, for the attention; None without one.

        `sign` says in which direction time runs.
        """
        if self.model.cma is None:
            return None
        some = self.masks.over(len(sights), lambda part: self.model.prior(sights.at(part)).float())
        priors = torch.cat(list(some)).unsqueeze(1)
        before = self._masks.get(numbers[0] - sign)
        if not self.remembers_masks or before is None:
            return priors
        # The mean of two probabilities, and back: at tau = 1 the gate is that mean.
        return torch.logit((priors.sigmoid() + before.sigmoid()) / 2, eps=1e-6)

    def _note(self, number: int, logits: Tensor) -> None:
        if self.remembers_masks:
            self._masks[number] = logits.float()
            if self.settings.mode == "frames":
                self._masks.pop(number - 1, None)
