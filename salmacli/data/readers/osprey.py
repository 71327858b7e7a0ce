"""Osprey-724K: conversations about regions of pictures of COCO; a region is shown by a mask."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from salmacli.data import rle
from salmacli.data.frames import FrameSource, pictures
from salmacli.data.readers import checks
from salmacli.data.readers.shapes import segmentation
from salmacli.data.readers.talk_files import RecordedTalks, characters, conversation, file_below, plain
from salmacli.data.records import Round, Talk
from salmacli.errors import DataError

DESCRIPTIONS = "osprey_detail_description.json"
FILES = (
    "osprey_conversation.json",
    DESCRIPTIONS,
    "osprey_part_level.json",
    "osprey_short_form.json",
    "osprey_lvis_positive_negative.json",
)
# Two of them answer in a word, and their questions say so. Source: ``osprey_724k.py`` of Osprey.
_BRIEF = ("osprey_part_level.json", "osprey_short_form.json")
_BRIEFLY = " Answer the question using a single word or phrase."
_FOLDERS = ("coco/train2014", "coco/val2014", "coco/train2017", "coco/val2017")
_QUESTIONS = (
    "Please describe {region} in detail.",
    "What can you tell me about {region} of the picture?",
    "Give me a thorough description of {region}.",
    "Look closely at {region} and tell me what you see.",
)
_HEAD = re.compile(r"^<?region\s*\d+>?\s*:\s*", re.IGNORECASE)


class Osprey(RecordedTalks):
    """``[{"file_name", "height", "width", "annotation": [{"segmentation"}], "conversations" or "description"}]``.

    All regions of a picture are shown in its first question; the texts then speak of ``region1``, which stands in
    angle brackets in the files. Of the five files those that are there are read.
    Source: ``osprey_724k.py`` of Osprey, ``Osprey_Dataset.py`` of Sa2VA.

    Attributes:
        folders: Hold the pictures, which lie in one of them.
    """

    folders: tuple[Path, ...]

    def __init__(self, root: Path, split: str) -> None:
        folder = checks.first_of(root, ("Osprey-724K",), "osprey")
        checks.first_of(folder, FILES, "osprey")
        checks.first_of(root, _FOLDERS, "osprey")
        self.folders = tuple(root / place for place in _FOLDERS)
        super().__init__("osprey", root, split, [folder / name for name in FILES if (folder / name).is_file()])

    def measure(self, record: Any) -> tuple[int, bool]:
        """See ``RecordedTalks``."""
        if not isinstance(record, dict):
            return 0, True
        described = record.get("description")
        texts = described if isinstance(described, list) else []
        return characters(record.get("conversations")) + sum(len(str(text)) for text in texts), True

    def talk(self, n: int) -> Talk:
        """See ``TalkSet``."""
        where = self.where(n)
        record = self.record(n)
        regions = len(checks.listing(record.get("annotation"), f"{where}, key annotation"))
        if not regions:
            raise DataError(f"{where}, key annotation: there is no region", "take the record out of the file")
        name = self.files[self._file[n]].name
        if name == DESCRIPTIONS:
            rounds = _described(record, regions, where)
        else:
            rounds = conversation(record.get("conversations"), where, _without_brackets)
            if name in _BRIEF:
                rounds = [Round(one.question + _BRIEFLY, one.answer) for one in rounds]
        shown = _regions(regions)
        first = Round(shown + rounds[0].question, rounds[0].answer, tuple(shown + one for one in rounds[0].wordings))
        return Talk(where, (first, *rounds[1:]), regions=tuple(str(number) for number in range(regions)))

    def frames(self, n: int) -> FrameSource:
        """See ``TalkSet``."""
        where = f"{self.where(n)}, key file_name"
        name = self.record(n).get("file_name")
        files = [file_below(folder, name, where) for folder in self.folders]
        file = next((file for file in files if file.is_file()), files[0])
        return pictures([file], file, still=True)

    def mask(self, n: int, key: str, size: tuple[int, int]) -> rle.RLE:
        """See ``TalkSet``."""
        where = self.where(n)
        record = self.record(n)
        stated = tuple(checks.number(record.get(side), f"{where}, key {side}") for side in ("height", "width"))
        if stated != size:
            raise DataError(f"{where}: it is about a picture of size {stated} where the picture is {size}", checks.MEND)
        entry = checks.mapping(record["annotation"][int(key)], f"{where}, region {key}")
        return segmentation(entry.get("segmentation"), size, f"{where}, region {key}")


def _regions(count: int) -> str:
    """What introduces the regions, as the released Sa2VA is asked."""
    shown = ", ".join(f"region{number + 1}<vp></vp>" for number in range(count))
    return f"There are {count} part regions in the picture: {shown}.\n"


def _described(record: dict[str, Any], regions: int, where: str) -> list[Round]:
    texts = checks.listing(record.get("description"), f"{where}, key description")
    if not 0 < len(texts) <= regions:
        raise DataError(f"{where}: {len(texts)} descriptions of {regions} regions", checks.MEND)
    rounds = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{where}, description {number}: a text is needed", checks.MEND)
        answer = _without_brackets(_HEAD.sub("", text)).strip()
        if not answer:
            raise DataError(f"{where}, description {number}: the text is empty", "take the record out of the file")
        first, *others = (question.format(region=f"region{number + 1}") for question in _QUESTIONS)
        rounds.append(Round(first, answer, tuple(others)))
    return rounds


def _without_brackets(text: str) -> str:
    return plain(text.replace("<", "").replace(">", ""))
