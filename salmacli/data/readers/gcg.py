"""Grounded conversation generation: captions whose phrases have masks, in the four files that GLaMM made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmacli.data import rle
from salmacli.data.frames import FrameSource, pictures
from salmacli.data.readers import checks
from salmacli.data.readers.shapes import segmentation
from salmacli.data.readers.talk_files import RecordedTalks, file_below, plain
from salmacli.data.records import Round, Talk
from salmacli.errors import DataError

QUESTIONS = (
    "Briefly describe this image, with a mask for every thing you name.",
    "What is in this picture? Give a segmentation mask after each phrase that names a part of it.",
    "Please describe the image in short and segment what you mention.",
    "Give a short explanation of this picture with interleaved segmentation masks.",
)
UNGROUNDED = "no phrase of the caption has a mask"
SHADOWED = "phrases that begin where a longer one does"


@dataclass(frozen=True)
class Phrase:
    """Characters `start` to `end` of a caption, and the keys of the masks that they mean."""

    start: int
    end: int
    keys: tuple[str, ...]


class Captions(RecordedTalks):
    """Pictures with one caption each. Formats differ in where caption, phrases and masks stand.

    Attributes:
        folder: Holds the pictures.
    """

    folder: Path
    picture_key = "file_name"

    def __init__(self, name: str, root: Path, split: str, file: str, folders: tuple[str, ...]) -> None:
        self.folder = checks.first_of(root, folders, name)
        self._shadowed = 0
        super().__init__(name, root, split, [checks.first_of(root, (f"annotations/{file}",), name)])
        if self._shadowed:
            self.dropped[SHADOWED] = self._shadowed

    def left_out(self, record: Any) -> str | None:
        """See ``RecordedTalks``. The training code of Sa2VA, too, shows another picture where nothing has a mask."""
        try:
            found = self.marked(self.opened(record, ""), "")
        except DataError:
            return None
        self._shadowed += shadowed(found)
        return None if found else UNGROUNDED

    def measure(self, record: Any) -> tuple[int, bool]:
        """See ``RecordedTalks``."""
        try:
            return len(str(self.opened(record, "").get("caption", ""))), True
        except DataError:
            return 0, True

    def opened(self, value: Any, where: str) -> dict[str, Any]:
        """What describes the picture, taken out of a record of the file."""
        return checks.mapping(value, where)

    def phrases(self, record: dict[str, Any], where: str) -> list[Phrase]:
        """The phrases of a record, in the order of its caption, none within another."""
        return apart(self.marked(record, where))

    def marked(self, record: dict[str, Any], where: str) -> list[Phrase]:
        """The phrases that stand in the caption and have masks, in any order."""
        caption = self.caption(record, where)
        found = [one for one in self.spans(record, caption, where) if 0 <= one.start < one.end <= len(caption)]
        return [one for one in found if self.shape(record, one.keys[0], where) not in ([], None)]

    def caption(self, record: dict[str, Any], where: str) -> str:
        """The caption to which positions refer: without the quotes that some stand in."""
        caption = record.get("caption")
        if not isinstance(caption, str) or not caption.strip('" \n'):
            raise DataError(f"{where}, key caption: the caption is empty", "take the record out of the file")
        return caption.strip('"').strip()

    def spans(self, record: dict[str, Any], caption: str, where: str) -> Iterator[Phrase]:
        """The phrases as the file has them, in any order, each with one key."""
        raise NotImplementedError

    def shape(self, record: dict[str, Any], key: str, where: str) -> Any:
        """The segmentation of one key."""
        raise NotImplementedError

    def talk(self, n: int) -> Talk:
        """See ``TalkSet``."""
        where = self.where(n)
        record = self.opened(self.record(n), where)
        phrases = self.phrases(record, where)
        if not phrases:
            raise DataError(f"{where}: {UNGROUNDED}", "take the record out of the file")
        rounds = Round(QUESTIONS[0], tagged(self.caption(record, where), phrases), QUESTIONS[1:])
        return Talk(where, (rounds,), tuple("+".join(one.keys) for one in phrases))

    def frames(self, n: int) -> FrameSource:
        """See ``TalkSet``."""
        where = self.where(n)
        name = self.opened(self.record(n), where).get(self.picture_key)
        file = file_below(self.folder, name, f"{where}, key {self.picture_key}")
        return pictures([file], file, still=True)

    def mask(self, n: int, key: str, size: tuple[int, int]) -> rle.RLE:
        """See ``TalkSet``."""
        where = self.where(n)
        record = self.opened(self.record(n), where)
        place = f"{where}, phrase"
        shapes = [segmentation(self.shape(record, one, where), size, f"{place} {one}") for one in key.split("+")]
        return rle.union(shapes, size)


class RefCocogCaptions(Captions):
    """``[{id: {"img_file_name", "caption", "refs": [{"sentence", "segmentation": polygons}]}}]``.

    Positions are not given: a phrase is where the caption has it, in whatever case. Phrases that it does not have are
    left out.
    Source: ``GCG_Dataset.py`` and ``gcg_process.py`` of Sa2VA, which write the caption in small letters.
    """

    picture_key = "img_file_name"

    def opened(self, value: Any, where: str) -> dict[str, Any]:
        """See ``Captions``."""
        entries = list(checks.mapping(value, where).values())
        return checks.mapping(entries[0] if len(entries) == 1 else None, where)

    def spans(self, record: dict[str, Any], caption: str, where: str) -> Iterator[Phrase]:
        """See ``Captions``. A phrase that several references have is at as many places, if the caption has it there."""
        taken: dict[str, int] = {}
        for number, value in enumerate(checks.listing(record.get("refs"), f"{where}, key refs")):
            place = f"{where}, reference {number}"
            words = checks.sentence(checks.mapping(value, place).get("sentence"), place)
            spelled = r"\s+".join(map(re.escape, words.split()))
            whole = rf"(?<!\w){spelled}(?!\w)"  # a man is not in a woman
            found = [match.span() for match in re.finditer(whole, caption, re.IGNORECASE)]
            if found:
                turn = taken.get(words.lower(), 0)
                taken[words.lower()] = turn + 1
                yield Phrase(*found[min(turn, len(found) - 1)], (str(number),))

    def shape(self, record: dict[str, Any], key: str, where: str) -> Any:
        """See ``Captions``."""
        return record["refs"][int(key)].get("segmentation")


class GroundedCaptions(Captions):
    """``[{"file_name", "caption", "groundings": {phrase: {"token_positives": [start, end], "rle_masks": [RLE]}}}]``.

    So are GranDf's and OpenPSG's; a phrase without grounding is null there.
    Source: ``gcg_process.py`` of Sa2VA, ``GranDf_gcg_ds.py`` of GLaMM.
    """

    def spans(self, record: dict[str, Any], caption: str, where: str) -> Iterator[Phrase]:
        """See ``Captions``."""
        found = checks.mapping(record.get("groundings"), f"{where}, key groundings")
        for number, (phrase, grounding) in enumerate(found.items()):
            if grounding is not None:
                place = f"{where}, phrase {phrase[:40]!r}"
                yield phrase_at(checks.mapping(grounding, place).get("token_positives"), number, place)

    def shape(self, record: dict[str, Any], key: str, where: str) -> Any:
        """See ``Captions``."""
        return list(record["groundings"].values())[int(key)].get("rle_masks")


def phrase_at(value: Any, number: int, where: str) -> Phrase:
    """The phrase of mask `number` at ``[start, end]``; what the annotators did not find is at −1."""
    positions = checks.listing(value, f"{where}, token positions")
    if len(positions) != 2:
        raise DataError(f"{where}: {len(positions)} token positions where a start and an end are needed", checks.MEND)
    start, end = (position if position == -1 else checks.number(position, where) for position in positions)
    return Phrase(start, end, (str(number),))


def apart(phrases: list[Phrase]) -> list[Phrase]:
    """Phrases in the order of the caption, of which none overlaps the next.

    What several masks mean by the same words becomes one phrase; where two overlap, the first ends where the second
    begins. Of those that begin at the same place only the longest stays, since an answer can tag those words once.
    Sa2VA's training code, too, cuts overlapping phrases of RefCOCOg; elsewhere it tags the phrases into one another.
    """
    together: dict[tuple[int, int], tuple[str, ...]] = {}
    for one in phrases:
        together[one.start, one.end] = together.get((one.start, one.end), ()) + one.keys
    ordered = sorted(together)
    found = []
    for index, (start, end) in enumerate(ordered):
        following = ordered[index + 1][0] if index + 1 < len(ordered) else end
        if start < min(end, following):
            found.append(Phrase(start, min(end, following), together[start, end]))
    return found


def shadowed(phrases: list[Phrase]) -> int:
    """How many phrases `apart` leaves out, with their masks."""
    places = {(one.start, one.end) for one in phrases}
    return len(places) - len({start for start, _ in places})


def tagged(caption: str, phrases: list[Phrase]) -> str:
    """The caption with ``<p> phrase </p> [SEG]`` for each phrase, as the released Sa2VA answers."""
    answer, at = "", 0
    for one in phrases:
        words = caption[one.start : one.end]
        gap = words[len(words.rstrip()) :]  # of a phrase that was shortened
        answer += f"{plain(caption[at : one.start])}<p> {plain(words.strip())} </p> [SEG]{gap}"
        at = one.end
    return answer + plain(caption[at:])


def open_gcg(name: str, root: Path, split: str) -> Captions:
    """One of the four: ``annotations/<file>`` and ``images/<folder>`` below ``glamm_data``.

    Source of the places: the training config of Sa2VA.
    """
    from salmacli.data.readers.gcg_flickr import FlickrCaptions

    if name == "gcg-refcocog":
        return RefCocogCaptions(name, root, split, "RefCOCOg_GCG_train.json", ("images/coco2014/train2014",))
    if name == "gcg-flickr30k":
        return FlickrCaptions(name, root, split, "flickr_mergedGT_GCG_train.json", ("images/flickr30k/Flickr30K",))
    if name == "gcg-grandf":
        return GroundedCaptions(name, root, split, "GranDf_HA_GCG_train.json", ("images/grandf/train",))
    return GroundedCaptions(name, root, split, "OpenPsgGCG_train.json", ("images/coco2017",))
