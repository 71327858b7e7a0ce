"""Sets that are talked about: conversations over a picture, a video or nothing, with masks or without."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from salmacli.data import rle
from salmacli.data.frames import FrameSource
from salmacli.data.records import Talk
from salmacli.errors import DataError


class TalkSet:
    """Talks, read from their file when they are asked for, so that a large set needs no memory of its own.

    Attributes:
        name: A value of ``config.schema.TrainingSet``.
        root: The set's folder.
        split: Of the set's own names.
        synthetic: Whether SALMA made it.
        still: Whether what is shown are pictures, not videos.
        dropped: How many records, or parts of some, were left out on opening, by reason.
    """

    name: str
    root: Path
    split: str
    synthetic: bool = False
    still: bool = True
    dropped: dict[str, int]

    def __init__(self, name: str, root: Path, split: str = "train") -> None:
        self.name, self.root, self.split = name, root, split
        self.dropped = {}

    def __len__(self) -> int:
        raise NotImplementedError

    def length(self, n: int) -> int:
        """Roughly how many characters talk `n` has; known without reading it."""
        raise NotImplementedError

    def shown(self, n: int) -> bool:
        """Whether something is seen with talk `n`; known without reading it."""
        raise NotImplementedError

    def talk(self, n: int) -> Talk:
        """One talk.

        Raises:
            DataError: Its record is broken; the message names file and key.
        """
        raise NotImplementedError

    def frames(self, n: int) -> FrameSource | None:
        """What talk `n` is about; None where it is about nothing that is seen.

        Raises:
            DataError: The record is broken, or a video cannot be read. A picture says so when it is read.
        """
        raise NotImplementedError

    def mask(self, n: int, key: str, size: tuple[int, int]) -> rle.RLE:
        """A target or region of talk `n`.

        Args:
            n: The talk.
            key: Of ``Talk.targets`` or ``Talk.regions``.
            size: (height, width) of the picture.

        Raises:
            DataError: It is broken, or of another size.
        """
        raise NotImplementedError

    def texts(self) -> Iterable[str]:
        """What is asked and answered, for a tokenizer from scratch; talks that cannot be read are passed over."""
        for n in range(len(self)):
            try:
                rounds = self.talk(n).rounds
            except DataError:
                continue
            for one in rounds:
                yield one.question
                yield one.answer
