"""Captions of Flickr30k Entities, in COCO's layout: pictures in one list, the phrases of all of them in another."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from salmacli.data.readers import checks
from salmacli.data.readers.gcg import UNGROUNDED, Captions, Phrase, phrase_at, shadowed
from salmacli.data.readers.streamed import Part, parts, read_part
from salmacli.errors import DataError

SMALLEST = 32  # pixels
FEWEST = 3  # words


class FlickrCaptions(Captions):
    """``{"images": [{"id", "file_name", "caption", "width", "height"}], "annotations": [{"image_id", …}]}``.

    An annotation has ``bbox``, ``area``, ``ignore``, ``tokens_positive`` (spans, of which the first counts) and
    ``sam_mask`` (an RLE). Left out is what Sa2VA leaves out: pictures of less than 32 pixels, captions of less than
    three words, annotations that are to be ignored or mark nothing.
    Source: ``FlickrGCGDataset`` of Sa2VA.
    """

    def found(self, path: Path) -> Iterator[Part]:
        """The pictures; where the annotations of each lie is noted first."""
        pictures: list[Part] = []
        ids, starts, ends, spans = array("q"), array("q"), array("q"), array("q")
        for part in parts(path, ("images", "annotations")):
            if part.key == "images":
                pictures.append(part)
            elif part.key == "annotations":
                with checks.part():
                    where = f"{path}, annotation at byte {part.start}"
                    annotation = checks.mapping(part.value, where)
                    if _marks(annotation):
                        ids.append(_number(annotation.get("image_id"), f"{where}, key image_id"))
                        starts.append(part.start)
                        ends.append(part.end)
                        spans.extend(_span(annotation))
        # Sorted by picture, and within one as they are in the file.
        order = np.argsort(np.array(ids, dtype=np.int64), kind="stable")
        self._ids, self._places = np.array(ids)[order], np.stack([starts, ends], axis=1)[order]
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 2)[order]
        return iter(pictures)

    def left_out(self, record: Any) -> str | None:
        """See ``RecordedTalks``."""
        try:
            image = self.opened(record, "")
            sides = [checks.number(image.get(key), "") for key in ("width", "height")]
            caption = self.caption(image, "")
            if len(caption.split(" ")) < FEWEST:
                return f"caption of less than {FEWEST} words"
            if min(sides) < SMALLEST:
                return f"picture of less than {SMALLEST} pixels"
            rows = self._annotations(image, "")
        except DataError:
            return None
        found = [Phrase(start, end, ()) for start, end in self._spans[rows].tolist()]
        self._shadowed += shadowed([one for one in found if 0 <= one.start < one.end <= len(caption)])
        return None if found else UNGROUNDED

    def record(self, n: int) -> dict[str, Any]:
        """See ``RecordedTalks``: a picture, and with it its annotations."""
        image = super().record(n)
        if "annotations" not in image:
            places = self._places[self._annotations(image, self.where(n))].tolist()
            image["annotations"] = [read_part(self.files[0], start, end) for start, end in places]
        return image

    def caption(self, record: dict[str, Any], where: str) -> str:
        """See ``Captions``; positions count from the very beginning here."""
        super().caption(record, where)
        return str(record["caption"])

    def spans(self, record: dict[str, Any], caption: str, where: str) -> Iterator[Phrase]:
        """See ``Captions``."""
        for number, annotation in enumerate(record["annotations"]):
            place = f"{where}, annotation {annotation.get('id')}, key tokens_positive"
            spans = checks.listing(annotation.get("tokens_positive"), place)
            yield phrase_at(spans[0] if spans else None, number, place)

    def shape(self, record: dict[str, Any], key: str, where: str) -> Any:
        """See ``Captions``."""
        return record["annotations"][int(key)].get("sam_mask")

    def _annotations(self, image: dict[str, Any], where: str) -> slice:
        """Which rows of `_places` and `_spans` the annotations of a picture are."""
        number = _number(image.get("id"), f"{where}, key id")
        first, last = np.searchsorted(self._ids, [number, number + 1])
        return slice(int(first), int(last))


def _number(value: Any, where: str) -> int:
    number = checks.number(value, where)
    if abs(number) >= 1 << 62:
        raise DataError(f"{where}: {number} is no number of a picture", checks.MEND)
    return number


def _span(annotation: dict[str, Any]) -> tuple[int, int]:
    """Where the phrase of an annotation begins and ends; what is broken, or has no mask, is nowhere."""
    try:
        phrase = phrase_at(checks.listing(annotation.get("tokens_positive"), "")[0], 0, "")
    except (DataError, IndexError):
        return -1, -1
    if annotation.get("sam_mask") in ([], None) or max(abs(phrase.start), abs(phrase.end)) >= 1 << 62:
        return -1, -1
    return phrase.start, phrase.end


def _marks(annotation: dict[str, Any]) -> bool:
    """Whether an annotation marks something; what is broken is kept, and says so when it is read."""
    box, area = annotation.get("bbox"), annotation.get("area", 1)
    if annotation.get("ignore") or (isinstance(area, (int, float)) and area <= 0):
        return False
    if isinstance(box, list) and len(box) == 4 and all(isinstance(side, (int, float)) for side in box):
        x, y, width, height = box
        return bool(width >= 1 and height >= 1 and x + width > 0 and y + height > 0)
    return True
