"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: a list of references over COCO annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmacli.config.files import read_json, safe_name
from salmacli.data.benchmarks import Benchmark, Track
from salmacli.data.readers import checks
from salmacli.data.readers.plain_pickle import read_pickle
from salmacli.data.readers.shapes import segmentation
from salmacli.data.records import Expression, Video
from salmacli.errors import DataError

SPLITS = {
    "refcoco": ("train", "val", "testA", "testB"),
    "refcoco+": ("train", "val", "testA", "testB"),
    "refcocog": ("train", "val", "test"),
    "grefcoco": ("train", "val", "testA", "testB"),
}
_REFERENCES = {
    "refcoco": "refs(unc).p",
    "refcoco+": "refs(unc).p",
    "refcocog": "refs(umd).p",
    "grefcoco": "grefs(unc).json",
}
NO_TARGET = -1  # stands in ``ann_id`` where a reference of gRefCOCO means nothing


class PictureSet(Benchmark):
    """Pictures as videos of one frame; targets are annotation ids.

    Attributes:
        pictures: The file of each video.
        shapes: Segmentation per annotation id.
    """

    still = True

    def __init__(
        self,
        name: str,
        root: Path,
        split: str,
        videos: Sequence[Video],
        masks_path: Path,
        pictures: dict[str, Path],
        shapes: dict[str, Any],
    ) -> None:
        super().__init__(name, root, split, videos, masks_path)
        self.pictures = pictures
        self.shapes = shapes

    def frame_path(self, video: Video, frame: str) -> Path:
        """See ``Benchmark``."""
        return self.pictures[video.name]

    def objects(self, video: Video, expression: Expression) -> list[Track] | None:
        """See ``Benchmark``."""
        size = self.size(video)
        where = f"{self.masks_path}, picture {video.name}, annotation"
        return [[segmentation(self.shapes[key], size, f"{where} {key}")] for key in expression.targets]


@dataclass(frozen=True)
class _Instances:
    """``instances.json``: images and annotations by id."""

    path: Path
    images: dict[int, dict[str, Any]]
    annotations: dict[int, dict[str, Any]]


def open_refcoco(name: str, root: Path, split: str) -> Benchmark:
    """``ref_seg/<name>/{instances.json, refs(...).p | grefs(unc).json}`` and ``coco2014/train2014``.

    The pictures may also lie below ``ref_seg/<name>``, as Sa2VA's archives have them. Every sentence of a reference
    becomes an expression, named ``<ref_id>-<number>``.
    """
    checks.split_of(split, SPLITS[name], name)
    path = checks.first_of(root, (f"ref_seg/{name}/{_REFERENCES[name]}",), name)
    folder = checks.first_of(root, ("coco2014/train2014", "train2014", f"ref_seg/{name}/coco2014/train2014"), name)
    instances = _read_instances(path.with_name("instances.json"))
    read = read_json(path) if path.suffix == ".json" else read_pickle(path)
    spoken: dict[int, dict[str, Expression]] = {}
    for index, entry in enumerate(checks.listing(read, str(path))):
        where = f"{path}, reference {index}"
        with checks.part():
            ref = checks.mapping(entry, where)
            if ref.get("split") == split:
                image, expressions = _expressions(ref, instances, name == "grefcoco", where)
                said = spoken.setdefault(image, {})
                if not said.keys().isdisjoint(expressions):
                    raise DataError(f"{where}: its ref_id stands twice for image {image}", checks.MEND)
                said.update(expressions)
    if name == "grefcoco" and not spoken:
        # Unlike those of the others, its test splits were held back at first.
        raise DataError(f"{path} has no reference of split {split!r}", "fetch the full release, or choose val")
    pictures: dict[str, Path] = {}
    videos = []
    for image, said in spoken.items():
        with checks.part():
            file = safe_name(str(instances.images[image].get("file_name", "")), f"{instances.path}, image {image}")
            stem = Path(file).stem
            if stem in pictures:
                raise DataError(f"{instances.path}: two images are named {file}", checks.MEND)
            pictures[stem] = folder / file
            videos.append(Video(stem, (stem,), tuple(said.values())))
    shapes = {str(key): annotation.get("segmentation") for key, annotation in instances.annotations.items()}
    return PictureSet(name, root, split, videos, instances.path, pictures, shapes)


def _expressions(
    ref: dict[str, Any], instances: _Instances, general: bool, where: str
) -> tuple[int, dict[str, Expression]]:
    """The image of a reference, and its sentences by the ids they get."""
    ref_id = checks.number(ref.get("ref_id"), f"{where}, key ref_id")
    image = checks.number(ref.get("image_id"), f"{where}, key image_id")
    if image not in instances.images:
        raise DataError(f"{where}: image {image} is not in {instances.path}", checks.MEND)
    targets = _targets(ref.get("ann_id"), image, instances, general, where)
    kind = "referring" if targets else "no-target"
    spoken = {}
    for number, said in enumerate(checks.listing(ref.get("sentences"), f"{where}, key sentences")):
        with checks.part():
            text = checks.sentence(checks.mapping(said, where).get("raw"), f"{where}, sentence {number}")
            key = f"{ref_id}-{number}"
            spoken[key] = Expression(key, text, targets, kind, checks.tags(ref))
    return image, spoken


def _targets(value: Any, image: int, instances: _Instances, general: bool, where: str) -> tuple[str, ...]:
    """The annotations a reference means; in gRefCOCO any number of them, without those of crowds.

    Source: ``grefer.py`` and ``grefcoco.py`` of ReLA.
    """
    several = value if general and isinstance(value, list) else [value]
    ids = [checks.number(one, f"{where}, key ann_id") for one in several]
    if general and ids in ([], [NO_TARGET]):
        return ()
    for one in ids:
        annotation = instances.annotations.get(one)
        if annotation is None or annotation.get("image_id") != image:
            raise DataError(f"{where}: annotation {one} is not one of image {image} in {instances.path}", checks.MEND)
    targets = tuple(str(one) for one in ids if not (general and instances.annotations[one].get("iscrowd")))
    if not targets:
        raise DataError(f"{where}: all of its annotations are crowds", checks.MEND)
    return targets


def _read_instances(path: Path) -> _Instances:
    instances = checks.mapping(read_json(path), str(path))
    return _Instances(path, _by_id(instances, "images", path), _by_id(instances, "annotations", path))


def _by_id(instances: dict[str, Any], key: str, path: Path) -> dict[int, dict[str, Any]]:
    found = {}
    for index, entry in enumerate(checks.listing(instances.get(key), f"{path}, key {key}")):
        record = checks.mapping(entry, f"{path}, {key} {index}")
        found[checks.number(record.get("id"), f"{path}, {key} {index}, key id")] = record
    return found
