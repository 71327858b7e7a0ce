"""One video and its sentences → tracks.

Per window of a video the LLM reads the key frames once and answers every expression; then the frames stream by, each is
encoded once, and all expressions are decoded from it. Nothing grows with the length of the video but the masks' run
lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from salmacli.config.schema import PredictConfig
from salmacli.data.frames import FrameSource, arrays
from salmacli.data.templates import ANSWERS
from salmacli.engine.prediction.asking import Conversation, Heard
from salmacli.engine.prediction.batches import BatchSize, out_of_memory
from salmacli.engine.prediction.features import VideoFeatures
from salmacli.engine.prediction.key_frames import choose
from salmacli.engine.prediction.settings import resolved
from salmacli.engine.prediction.sights import Mode, Shown, to_language
from salmacli.engine.prediction.tracking import Tracker
from salmacli.engine.prediction.tracks import Recorder, Track, reason_of
from salmacli.engine.prediction.windows import NOTHING, Fade, FrameMasks, Window, windows
from salmacli.errors import DataError, SalmaError, UsageError
from salmacli.models.grounding import Decodable, FrameFeatures
from salmacli.models.salma import Language, Salma


class Predictor:
    """Segments videos with one model.

    Mode "frames" decodes every frame with language; "consistent" decodes K evenly spread frames with language and
    carries their masks to the others through SAM 2's memory; "sa2va" is the released Sa2VA: the first K frames, and its
    own use of the memory.

    Args:
        model: in any state; it is put into evaluation mode.
        settings: what is null in them is the mode's or the model's own.
        say: told when a batch had to be made smaller.

    Attributes:
        settings: the resolved ones, with the precision of the weights.

    Raises:
        ConfigError: the settings contradict the model's own mode.
        UsageError: the model has no attention of the named kind.
    """

    def __init__(
        self, model: Salma, settings: PredictConfig | None = None, say: Callable[[str], object] | None = None
    ) -> None:
        self.model = model.eval()
        precision = "bf16" if model.dtype == torch.bfloat16 else "fp32"
        self.settings = resolved(settings or PredictConfig(), model.config).model_copy(update={"precision": precision})
        say = say or (lambda _: None)
        self._frames = BatchSize(self.settings.frames_at_once, "frames", say)
        self._expressions = BatchSize(self.settings.expressions_at_once, "expressions", say)
        self._memories = BatchSize(self.settings.expressions_at_once, "expressions in memory", say)
        self._masks = BatchSize(self.settings.expressions_at_once, "masks", say)
        self._pictures = BatchSize(self.settings.expressions_at_once, "masks of a frame's size", say)
        if self.mode == "consistent" and model.config.inference_mode == "sa2va" and not model.config.sam2.two_decoders:
            say("its one mask decoder was not trained to propagate; salma convert --base SAM2 adds SAM 2's own")
        if self.settings.attention != "auto":
            _attend_by(model, self.settings.attention)
        if self.settings.compile:
            sam2, tower = model.grounding, model.mllm.parts()["vision tower"]
            # A compiled decoder does not notice what fuses language into its mask features.
            fuses = model.cma is not None and model.cma.fusion is not None
            decoders = set() if fuses else {sam2.sam_mask_decoder, sam2.propagator}
            for part in (tower, sam2.image_encoder, *decoders):
                part.compile()

    @property
    def mode(self) -> Mode:
        """How videos are predicted."""
        return self.settings.mode  # type: ignore[return-value]  # resolved

    def video(
        self,
        frames: FrameSource | Sequence[np.ndarray],
        texts: Sequence[str],
        *,
        answer: str | None = None,
        keep_logits: bool = False,
        advance: Callable[[int], object] | None = None,
    ) -> list[Track]:
        """Segment what each text means.

        Args:
            frames: a video or a picture, or T times uint8 (H, W, 3) of one size.
            texts: E expressions.
            answer: what the LLM answers, instead of its own words.
            keep_logits: keep every frame's mask logits; they grow with the video.
            advance: called with a number of frames as they are finished.

        Returns:
            One track per text.

        Raises:
            DataError: there are no frames, one cannot be read, or a text is empty.
            SalmaError: memory does not hold a single frame or expression.
        """
        source = frames if isinstance(frames, FrameSource) else arrays(frames)
        if not len(source):
            raise DataError("the video has no frames", "check the folder")
        if any(not text.strip() for text in texts):
            raise DataError("an expression is empty", "say what to segment")
        if not texts:
            return []
        try:
            with torch.inference_mode():
                return self._video(source, texts, answer, keep_logits, advance or (lambda _: None))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise SalmaError("memory does not hold this video's prediction", "fewer sentences at a time") from None

    def _video(
        self,
        source: FrameSource,
        texts: Sequence[str],
        answer: str | None,
        keep_logits: bool,
        advance: Callable[[int], object],
    ) -> list[Track]:
        plan = windows(len(source), self.settings.window, self.settings.overlap or 0)
        features = VideoFeatures(self.model, self.mode, source, self._frames, self.settings.readers)
        through = self.model.config.sam2.image_size if self.mode == "sa2va" else None
        recorder = Recorder(len(texts), len(source), source.size, through, keep_logits, self._pictures)
        fade, said = Fade(plan), list[Heard]()
        for index, window in enumerate(plan):
            shared = range(plan[index + 1].start if index + 1 < len(plan) else window.stop, window.stop)
            chosen, pictures = self._key_frames(features, source, window)
            shown = to_language(self.model, self.mode, [pictures[number] for number in chosen], source.still)
            heard, spare = self._ask(shown, texts, answer)
            for number, masks in self._window(features, window, pictures, shared, heard, spare):
                for finished, merged in fade.add(index, number, masks):
                    recorder.put(finished, merged)
                    advance(1)
            features.keep(shared)
            said.append(heard.without_words())
        recorder.finish()
        if self.settings.fallback == "previous":
            recorder.repeat_previous()
        return [self._track(text, row, said, recorder) for row, text in enumerate(texts)]

    def _ask(self, shown: Shown, texts: Sequence[str], answer: str | None) -> tuple[Heard, Language | None]:
        """What the LLM says of a window, and what a forced answer means where a fall-back may need it."""
        most = self.settings.max_new_tokens
        conversation = Conversation(self.model, self.mode, shown, self._frames, self._expressions, most)
        forced = self.settings.fallback == "force-seg"
        return conversation.ask(texts, answer), conversation.ask(texts, ANSWERS[0]).language if forced else None

    def _key_frames(
        self, features: VideoFeatures, source: FrameSource, window: Window
    ) -> tuple[list[int], dict[int, np.ndarray]]:
        """A window's key frames as the LLM reads them, repeated where a short video is, and their pictures."""
        pictures: dict[int, np.ndarray] = {}

        def looks(numbers: Sequence[int]) -> Tensor:
            spread = [window.start + number for number in numbers]
            pictures.update(features.hold(spread))
            return features.at(spread).stride16.float().mean((2, 3))

        settings = self.settings
        count, how = settings.key_frames or 1, settings.choice or "uniform"
        chosen = [window.start + n for n in choose(how, len(window), count, settings.cached_frames, looks)]
        missing = sorted(set(chosen) - set(pictures))
        pictures.update(zip(missing, source.read(missing, threads=settings.readers), strict=True))
        return chosen, {number: pictures[number] for number in chosen}

    def _window(
        self,
        features: VideoFeatures,
        window: Window,
        pictures: Mapping[int, np.ndarray],
        keep: range,
        heard: Heard,
        spare: Language | None,
    ) -> Iterator[tuple[int, FrameMasks]]:
        """Masks of all E expressions in every frame of a window, with the fall-backs that need the model.

        Args:
            features: of the video.
            window: its frames.
            pictures: those that the LLM read, by number.
            keep: frames whose features are held afterwards.
            heard: the answers.
            spare: language of forced answers, for fall-back "force-seg".
        """
        device = self.model.device
        found = torch.tensor(heard.found, device=device)
        language = heard.language if spare is None else heard.language.where(found, spare)
        rows = (torch.ones_like(found) if spare is not None else found).nonzero().flatten()
        if len(rows):
            features.hold(sorted(pictures), pictures)
            asked, batches = language.at(rows), {"masks": self._masks, "memories": self._memories}
            tracker = Tracker(self.model, self.settings, features, asked, **batches)
            frames = tracker.frames(window, sorted(pictures), keep)
        elif self.settings.fallback == "prior":
            frames = self._unasked(features, window, keep)
        else:
            side = self.model.config.sam2.image_size // 4
            nothing = FrameMasks.nothing(len(found), side, device)
            yield from ((number, nothing) for number in window.numbers())
            return
        for number, frame, logits in frames:
            whole = logits.new_full((len(found), *logits.shape[1:]), NOTHING)
            whole[rows] = logits
            yield number, self._filled(frame, whole, found, spare)

    def _unasked(
        self, features: VideoFeatures, window: Window, keep: range
    ) -> Iterator[tuple[int, FrameFeatures, Tensor]]:
        """Frames without any object."""
        side = self.model.config.sam2.image_size // 4
        for numbers, group in features.stream(window.numbers(), keep):
            for row, number in enumerate(numbers):
                yield number, group.at(slice(row, row + 1)), torch.zeros(0, side, side, device=self.model.device)

    def _filled(self, frame: FrameFeatures, logits: Tensor, found: Tensor, spare: Language | None) -> FrameMasks:
        """One frame's (E, S/4, S/4) logits with fall-backs in place of what is empty."""
        empty = ~found | (logits.amax((1, 2)) <= 0)
        fallback = self.settings.fallback
        if fallback not in ("prior", "force-seg") or not bool(empty.any()):
            return FrameMasks(logits, empty, torch.zeros_like(empty), found)
        one = self.model.grounding.decodable(frame)
        prior = self.model.prior(one).float()
        if fallback == "prior":
            logits = torch.where(empty[:, None, None], prior, logits)
        elif spare is not None:
            rows = (empty & found).nonzero().flatten()  # the others were decoded with it all along
            for part in self._masks.over(
                len(rows), lambda part: (rows[part], self._forced(one, prior, spare, rows[part]))
            ):
                logits = logits.index_copy(0, *part)
        return FrameMasks(logits, empty, empty & (logits.amax((1, 2)) > 0), torch.ones_like(found))

    def _forced(self, one: Decodable, prior: Tensor, spare: Language, rows: Tensor) -> Tensor:
        """(P, S/4, S/4) logits of one frame, decoded with the language of forced answers."""
        language = spare.at(rows)
        image = one.image.expand(len(rows), -1, -1, -1)
        return self.model.decode(
            Decodable.of(image, one.fine), language, prior.expand(len(rows), -1, -1)
        ).logits.float()

    def _track(self, text: str, row: int, heard: Sequence[Heard], recorder: Recorder) -> Track:
        found = [window.found[row] for window in heard]
        embedding = next((window.language.seg[row] for window in heard if window.found[row]), None)
        return Track(
            text=text,
            answers=tuple(window.answers[row] for window in heard),
            size=recorder.size,
            counts=recorder.counts[row],
            reason=reason_of(found, [window.several[row] for window in heard], recorder.empty[row]),
            empty=int(recorder.empty[row].sum()),
            filled=int(recorder.filled[row].sum()),
            logits=recorder.logits_of(row),
            embedding=embedding,
            side=self.model.config.sam2.image_size,
            by_side=self.mode == "sa2va",
        )


def _attend_by(model: Salma, kind: str) -> None:
    """Choose the kernels of the LLM's attention; the model keeps them."""
    if kind == "flash_attention_2" and model.dtype == torch.float32:
        raise UsageError("attention=flash_attention_2 needs half precision", "add --precision bf16")
    try:
        model.mllm.model.set_attn_implementation(kind)
    except (ImportError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(
            f"attention={kind} is not to be had ({why})", "leave it out, or install what it needs"
        ) from None
