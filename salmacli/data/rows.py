"""Clips → rows of a batch: pictures in parts, conversations that are cut where they would be too long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from salmacli.data.conversation import IGNORE, REGION, Branch, ChatFormat, Packed, dialogue, pack, prefix
from salmacli.data.tiles import shown_of
from salmacli.data.training.clips import Clip
from salmacli.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Row:
    """One clip as the LLM is told it.

    Attributes:
        clip: what is told.
        parts: the frames and tiles that are shown.
        talk: its conversation.
        objects: which of the clip's objects have their `[SEG]` in it.
        seen: (G,) per placeholder, the language position of its parts.
    """

    clip: Clip
    parts: tuple[np.ndarray, ...]
    talk: Packed
    objects: tuple[int, ...]
    seen: np.ndarray

    @property
    def frames(self) -> tuple[np.ndarray, ...]:
        """What is segmented: nothing where no object is left."""
        return self.clip.frames if self.objects else ()


@dataclass(frozen=True)
class Telling:
    """How a model is told a clip.

    Attributes:
        tokenizer: of the model.
        chat: how it is shown pictures.
        size: (height, width) of its frames.
        tokens_per_frame: placeholders per frame.
        tiles: a picture is shown in at most so many.
        max_tokens: longer conversations are cut.
    """

    tokenizer: PreTrainedTokenizerFast
    chat: ChatFormat
    size: tuple[int, int]
    tokens_per_frame: int
    tiles: int
    max_tokens: int

    def filler(self) -> Packed:
        """A conversation in which nothing is said, so that a process without a sample can take part in a step."""
        begin = prefix(self.tokenizer, self.chat, [])
        return pack(begin, [])

    def row(self, clip: Clip) -> Row:
        """What is told of a clip, cut where it would be too long.

        Raises:
            DataError: it does not fit at all, or its texts do not fit its objects and regions.
        """
        pictures = [self._parts(picture, clip.still) for picture in clip.shown]
        tokens = [len(parts) * self.tokens_per_frame for parts in pictures]
        start = prefix(self.tokenizer, self.chat, tokens)
        branches, objects = self._branches(clip, self.max_tokens - len(start))
        talk = pack(start, branches)
        # What is pointed at is seen in the first picture: in the whole of it, which is the last of its tiles.
        whole = (len(pictures[0]) - 1) * self.tokens_per_frame if pictures else 0
        cells = talk.cells[talk.ids == self.tokenizer.convert_tokens_to_ids(self.chat.image_context)]
        seen = np.where(cells >= 0, whole + cells, np.cumsum(cells < 0) - 1)
        return Row(clip, tuple(part for parts in pictures for part in parts), talk, objects, seen)

    def _branches(self, clip: Clip, room: int) -> tuple[list[Branch], tuple[int, ...]]:
        """A clip's dialogues in so many tokens, and the numbers of the objects whose `[SEG]` they hold."""
        cells = [self._cells(region) for region in clip.regions]
        branches, objects, said = list[Branch](), list[int](), 0
        for number, turns in enumerate(clip.dialogues, start=1):
            here = sum(turn.question.count(REGION) for turn in turns) if number < len(clip.dialogues) else len(cells)
            whole = dialogue(self.tokenizer, self.chat, turns, cells[:here], bool(clip.shown))
            cells = cells[here:]
            part = whole.cut(room)
            # Of a dialogue that lost all its [SEG], or all its answers, nothing is worth reading.
            if (part.segs or not whole.segs) and (part.labels != IGNORE).any():
                branches.append(part)
                objects += range(said, said + len(part.segs))
                room -= len(part.ids)
            said += len(whole.segs)
        if said != len(clip.targets):
            raise DataError(f"its answers have {said} [SEG] for {len(clip.targets)} objects", "take [SEG] out of them")
        if not branches:
            raise DataError(
                f"its conversation is longer than data.max_tokens = {self.max_tokens} before anything is answered",
                "raise it, or show less: model.tiles, model.clip_frames",
            )
        return branches, tuple(objects)

    def _parts(self, picture: np.ndarray, still: bool) -> list[np.ndarray]:
        """The tiles of a picture, or a frame of a video as it is."""
        return shown_of(picture, self.size[0], self.tiles) if still else [picture]

    def _cells(self, region: np.ndarray) -> np.ndarray:
        """Which of a picture's language positions a region (H, W) covers, row by row; at least one.

        Source: the released Sa2VA, which looks at the nearest pixel of each position; a region that none of them meets
        gets the one of which it covers most.
        """
        (height, width), (rows, columns) = region.shape, self._grid
        y, x = np.arange(rows) * height // rows, np.arange(columns) * width // columns
        found = np.flatnonzero(region[y[:, None], x])
        if len(found):
            return found
        if not region.any():
            raise DataError("it points at an empty region", "take it out of the set")
        inside_y, inside_x = np.nonzero(region)
        met = (inside_y * rows // height) * columns + inside_x * columns // width
        return np.array([np.bincount(met).argmax()])

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows and columns of a picture's language positions."""
        rows = round((self.tokens_per_frame * self.size[0] / self.size[1]) ** 0.5)
        return rows, self.tokens_per_frame // rows
