"""A user's own pictures: ``annotations.json`` with polygons and one text per object, and ``images/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from salmacli.config.files import read_json, safe_name
from salmacli.data.benchmarks import Benchmark
from salmacli.data.readers import checks
from salmacli.data.readers.refcoco import PictureSet
from salmacli.data.records import Expression, Video
from salmacli.errors import DataError


def open_own(root: Path, split: str) -> Benchmark:
    """``[{"image": file, "mask": [object][polygon][x1, y1, ...], "text": [one per object]}]``."""
    checks.split_of(split, ("train",), "own")
    path = root / "annotations.json"
    videos: list[Video] = []
    pictures: dict[str, Path] = {}
    shapes: dict[str, Any] = {}
    for index, value in enumerate(checks.listing(read_json(path), str(path))):
        where = f"{path}, entry {index}"
        with checks.part():
            entry = checks.mapping(value, where)
            file = safe_name(str(entry.get("image", "")), f"{where}, key image")
            masks = checks.listing(entry.get("mask"), f"{where}, key mask")
            texts = checks.listing(entry.get("text"), f"{where}, key text")
            if len(masks) != len(texts):
                raise DataError(f"{where}: {len(masks)} masks but {len(texts)} texts", "give one text per object")
            # The same picture may come in several entries, so the entry's number is part of the name.
            name = f"{index:06d}-{Path(file).stem}"
            expressions = []
            for number, (mask, text) in enumerate(zip(masks, texts, strict=True)):
                key = f"{index}-{number}"
                shapes[key] = mask
                with checks.part():
                    words = checks.sentence(text, f"{where}, text {number}")
                    expressions.append(Expression(str(number), words, (key,)))
            pictures[name] = root / "images" / file
            videos.append(Video(name, (Path(file).stem,), tuple(expressions)))
    if not videos:
        raise DataError(f"{path} lists no pictures", "add entries with image, mask and text")
    return PictureSet("own", root, split, videos, path, pictures, shapes)
