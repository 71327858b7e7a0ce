"""RefCOCO, RefCOCO+ and RefCOCOg: a pickle of references over COCO annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salmacli.config.files import read_json, safe_name
from salmacli.data import rle
from salmacli.data.benchmarks import Benchmark
from salmacli.data.readers import checks
from salmacli.data.readers.plain_pickle import read_pickle
from salmacli.data.readers.ref_davis import first_of
from salmacli.data.readers.shapes import segmentation
from salmacli.data.records import Expression, Video
from salmacli.errors import DataError

SPLITS = {
    "refcoco": ("train", "val", "testA", "testB"),
    "refcoco+": ("train", "val", "testA", "testB"),
    "refcocog": ("train", "val", "test"),
}
_PICKLES = {"refcoco": ("refs(unc).p",), "refcoco+": ("refs(unc).p",), "refcocog": ("refs(umd).p",)}


class PictureSet(Benchmark):
    """Pictures as videos of one frame; targets are annotation ids.

    Attributes:
        pictures: The file of each video.
        shapes: Segmentation per annotation id.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        split: str,
        videos: Sequence[Video],
        pictures: dict[str, Path],
        shapes: dict[str, Any],
    ) -> None:
        super().__init__(name, root, split, videos)
        self.pictures = pictures
        self.shapes = shapes

    def frame_path(self, video: Video, frame: str) -> Path:
        """See ``Benchmark``."""
        return self.pictures[video.name]

    def truth(self, video: Video, expression: Expression) -> list[rle.RLE] | None:
        """See ``Benchmark``."""
        size = self.size(video)
        where = f"{self.root}, picture {video.name}, annotation"
        masks = [segmentation(self.shapes[key], size, f"{where} {key}") for key in expression.targets]
        return [rle.union(masks, size)]


def open_refcoco(name: str, root: Path, split: str) -> Benchmark:
    """``ref_seg/<name>/{instances.json, refs(...).p}`` and ``coco2014/train2014``.

    Every sentence of a reference becomes an expression, named ``<ref_id>-<number>``.
    """
    checks.split_of(split, SPLITS[name], name)
    refs_path = first_of(root, [f"ref_seg/{name}/{file}" for file in _PICKLES[name]], name)
    pictures_folder = first_of(root, ("coco2014/train2014", "train2014"), name)
    instances_path = refs_path.with_name("instances.json")
    instances = checks.mapping(read_json(instances_path), str(instances_path))
    files = _by_id(instances, "images", instances_path)
    annotations = _by_id(instances, "annotations", instances_path)
    sentences: dict[int, list[Expression]] = {}
    for index, entry in enumerate(checks.listing(read_pickle(refs_path), str(refs_path))):
        where = f"{refs_path}, reference {index}"
        ref = checks.mapping(entry, where)
        if ref.get("split") != split:
            continue
        image = checks.number(ref.get("image_id"), f"{where}, key image_id")
        target = checks.number(ref.get("ann_id"), f"{where}, key ann_id")
        if image not in files or target not in annotations:
            raise DataError(f"{where}: image {image} or annotation {target} is not in {instances_path}", checks.MEND)
        sentences.setdefault(image, []).extend(_expressions(ref, target, where))
    pictures: dict[str, Path] = {}
    videos = []
    for image, spoken in sentences.items():
        file = safe_name(str(files[image].get("file_name", "")), f"{instances_path}, image {image}")
        stem = Path(file).stem
        if stem in pictures:
            raise DataError(f"{instances_path}: two images are named {file}", checks.MEND)
        pictures[stem] = pictures_folder / file
        videos.append(Video(stem, (stem,), tuple(spoken)))
    shapes = {str(key): annotation.get("segmentation") for key, annotation in annotations.items()}
    return PictureSet(name, root, split, videos, pictures, shapes)


def _expressions(ref: dict[str, Any], target: int, where: str) -> list[Expression]:
    ref_id = checks.number(ref.get("ref_id"), f"{where}, key ref_id")
    spoken = []
    for number, said in enumerate(checks.listing(ref.get("sentences"), f"{where}, key sentences")):
        text = checks.sentence(checks.mapping(said, where).get("raw"), f"{where}, sentence {number}")
        spoken.append(Expression(f"{ref_id}-{number}", text, (str(target),), tags=checks.tags(ref)))
    return spoken


def _by_id(instances: dict[str, Any], key: str, path: Path) -> dict[int, dict[str, Any]]:
    entries = checks.listing(instances.get(key), f"{path}, key {key}")
    found = {}
    for index, entry in enumerate(entries):
        record = checks.mapping(entry, f"{path}, {key} {index}")
        found[checks.number(record.get("id"), f"{path}, {key} {index}, key id")] = record
    return found
