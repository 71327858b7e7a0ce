"""What the sets of talks share: records in large JSON files, conversations, pictures in folders."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from salmacli.config.files import safe_name
from salmacli.data.readers import checks
from salmacli.data.readers.streamed import Part, parts, read_part
from salmacli.data.records import Round
from salmacli.data.talks import TalkSet
from salmacli.errors import DataError

# What means something to SALMA or to the LLMs it is built on; in a text by somebody else it means nothing of the sort
# (ShareGPT talks about HTML, and so do a <p> and an <img>).
_MARKS = re.compile(r"<(?=/?(?:p|vp|image|video|img|IMG_CONTEXT|ref|box|quad|s|unk)>|\|)|\[(?=SEG\])")
_PICTURE = re.compile(r"<(?:image|video)>")


class RecordedTalks(TalkSet):
    """Talks that are the records of JSON lists. In memory is only where each begins and ends.

    Attributes:
        files: The files, one after the other.
    """

    files: tuple[Path, ...]

    def __init__(self, name: str, root: Path, split: str, files: Sequence[Path]) -> None:
        super().__init__(name, root, checks.split_of(split, ("train",), name))
        self.files = tuple(files)
        self._file, self._number, self._start, self._end = array("b"), array("i"), array("q"), array("q")
        self._lengths, self._shown = array("i"), array("b")
        self._last: tuple[int, Any] = (-1, None)
        dropped: Counter[str] = Counter()
        columns = (self._file, self._number, self._start, self._end, self._lengths, self._shown)
        for index, path in enumerate(self.files):
            for number, part in enumerate(self.found(path)):
                reason = self.left_out(part.value)
                if reason:
                    dropped[reason] += 1
                    continue
                row = (index, number, part.start, part.end, *self.measure(part.value))
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
        self.dropped = dict(dropped)
        if not len(self):
            raise DataError(f"{name}: {', '.join(map(str, self.files))} holds no record that can be used", checks.MEND)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": (-1, None)}

    def __len__(self) -> int:
        return len(self._start)

    def found(self, path: Path) -> Iterable[Part]:
        """The records of a file."""
        return parts(path)

    def left_out(self, record: Any) -> str | None:
        """Why a record is never visited, or None. What is broken is kept, and says so when it is visited."""
        return None

    def measure(self, record: Any) -> tuple[int, bool]:
        """Roughly the characters of a record's texts, and whether it shows something; whatever the record is."""
        raise NotImplementedError

    def length(self, n: int) -> int:
        """See ``TalkSet``."""
        return self._lengths[n]

    def shown(self, n: int) -> bool:
        """See ``TalkSet``."""
        return bool(self._shown[n])

    def where(self, n: int) -> str:
        """File and place of a record, for messages."""
        return f"{self.files[self._file[n]]}, record {self._number[n]}"

    def record(self, n: int) -> dict[str, Any]:
        """A record as it is written; the last one is kept, since its talk, its frames and its masks are asked for."""
        kept, value = self._last
        if kept != n:
            value = read_part(self.files[self._file[n]], self._start[n], self._end[n])
            self._last = (n, value)
        return checks.mapping(value, self.where(n))


def plain(text: str) -> str:
    """A text in which nothing is a special token: these are broken by a space."""
    return _MARKS.sub(lambda mark: f"{mark.group()} ", text)


def conversation(value: Any, where: str, clean: Callable[[str], str] = plain) -> list[Round]:
    """``[{"from": "human" | "gpt", "value": text}, ...]`` as rounds.

    As the training code of LLaVA has it, what the model says before anybody asks is left out, and the two take turns;
    a last question without an answer is left out, too.

    Args:
        value: The list.
        where: File and record.
        clean: Applied to every text, after the places of pictures are taken out.

    Raises:
        DataError: It is no such list, a text is empty, or nothing is answered.
    """
    said: list[str] = []
    for index, entry in enumerate(checks.listing(value, f"{where}, key conversations")):
        place = f"{where}, message {index}"
        message = checks.mapping(entry, place)
        who, text = message.get("from"), message.get("value")
        if who not in ("human", "gpt"):
            raise DataError(f"{place}, key from: {str(who)[:40]!r} is neither human nor gpt", checks.MEND)
        if not said and who == "gpt":
            continue
        if who != ("human", "gpt")[len(said) % 2]:
            raise DataError(f"{place}: {who} speaks twice in a row", "give one question for every answer")
        words = clean(_PICTURE.sub("", text)).strip() if isinstance(text, str) else ""
        if not words:
            raise DataError(f"{place}: the text is empty", "give it a text, or take the record out of the file")
        said.append(words)
    if len(said) < 2:
        raise DataError(f"{where}, key conversations: nothing is asked and answered", "take the record out of the file")
    return [Round(*turn) for turn in zip(said[::2], said[1::2], strict=False)]


def file_below(folder: Path, value: Any, where: str) -> Path:
    """A file that a record names, as ``coco/train2017/000000000009.jpg``.

    Raises:
        DataError: The name is none, or leads outside the folder.
    """
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: the name of a file is needed, found {str(value)[:40]!r}", checks.MEND)
    return folder.joinpath(*(safe_name(step, where) for step in value.removeprefix("./").split("/")))


def characters(conversations: Any) -> int:
    """Roughly how long a conversation is; 0 where it is none."""
    messages = conversations if isinstance(conversations, list) else []
    return sum(len(str(one.get("value", ""))) for one in messages if isinstance(one, dict))
