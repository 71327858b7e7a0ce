"""One video and its sentences → tracks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from salmacli.data.conversation import answer_ids, branch, prefix
from salmacli.engine.prediction.sights import Mode, Shown, question, to_language, to_sam2
from salmacli.engine.prediction.tracks import Track
from salmacli.errors import DataError, UsageError
from salmacli.models.grounding import Decodable, FrameFeatures, Masks
from salmacli.models.sa2va import propagate_as_sa2va
from salmacli.models.salma import Language, Salma

MAX_NEW_TOKENS = 32
FRAMES_AT_ONCE = 16
MASKS_AT_ONCE = 128


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


def _rows(found: Tensor) -> Iterator[int | None]:
    """Per expression its row among those that were found."""
    row = 0
    for one in found.tolist():
        yield row if one else None
        row += int(one)
