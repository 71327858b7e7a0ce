"""MeViS and ReVOS: expressions that name masks by ``anno_id`` in one ``mask_dict.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from salmacli.data.benchmarks import Benchmark, Track
from salmacli.data.readers import checks
from salmacli.data.readers.frame_folders import FrameFolders
from salmacli.data.records import Expression, Video
from salmacli.errors import DataError

MEVIS_SPLITS = ("train", "valid_u", "valid", "test")
REVOS_SPLITS = ("train", "valid")
REVOS_KINDS = {0: "referring", 1: "reasoning", 2: "no-target"}


class MaskDictSet(FrameFolders):
    """Several ``anno_id`` of an expression are united.

    Attributes:
        foreground_path: ``mask_dict_foreground.json`` of ReVOS; None where there is none.
    """

    foreground_path: Path | None = None

    def annotated(self, video: Video) -> list[Track] | None:
        """See ``Benchmark``."""
        if self.foreground_path is None:
            return None
        where = f"{self.foreground_path}, video {video.name}"
        entry = checks.mapping(self.contents(self.foreground_path).get(video.name), where)
        frames = checks.listing(entry.get("masks_rle"), f"{where}, key masks_rle")
        # A frame holds one RLE, or one per object.
        objects = [frame if isinstance(frame, list) else [frame] for frame in frames]
        most = max((len(found) for found in objects), default=0)
        # Also without an object there is a track, so that its length is checked.
        return [[found[n] if n < len(found) else None for found in objects] for n in range(max(most, 1))]


def open_mevis(root: Path, split: str) -> Benchmark:
    """MeViS: ``<split>/{JPEGImages, meta_expressions.json, mask_dict.json}``."""
    folder = root / checks.split_of(split, MEVIS_SPLITS, "mevis")
    masks = folder / "mask_dict.json"
    videos = _videos(folder / "meta_expressions.json", masks.is_file())
    if split in ("train", "valid_u") and not masks.is_file():
        raise DataError(f"{masks} is missing", "fetch it, this split's masks are public")
    return MaskDictSet("mevis", root, split, videos, folder / "JPEGImages", masks if masks.is_file() else None)


def open_revos(root: Path, split: str) -> Benchmark:
    """ReVOS: ``meta_expressions_<split>_.json``, ``mask_dict.json``, frames beside or in ``JPEGImages``."""
    checks.split_of(split, REVOS_SPLITS, "revos")
    masks = root / "mask_dict.json"
    if not masks.is_file():
        raise DataError(f"{masks} is missing", "fetch it, the masks of ReVOS are public")
    videos = _videos(root / f"meta_expressions_{split}_.json", True, kinds=REVOS_KINDS)
    frames = root / "JPEGImages"
    benchmark = MaskDictSet("revos", root, split, videos, frames if frames.is_dir() else root, masks)
    foreground = root / "mask_dict_foreground.json"
    if foreground.is_file():
        benchmark.foreground_path = foreground
    return benchmark


def _videos(path: Path, with_masks: bool, kinds: dict[int, str] | None = None) -> list[Video]:
    videos = []
    for name, value in sorted(checks.read_videos(path).items()):
        where = f"{path}, video {name}"
        with checks.part():
            video = checks.named_video(name, value, path)
            records = []
            for key, entry in checks.expressions(video, where).items():
                with checks.part():
                    records.append(_expression(key, entry, f"{where}, expression {key}", with_masks, kinds))
            videos.append(Video(name, checks.frame_names(video, where), tuple(records)))
    return videos


def _expression(
    key: str, entry: dict[str, Any], where: str, with_masks: bool, kinds: dict[int, str] | None
) -> Expression:
    targets: tuple[str, ...] = ()
    if with_masks:
        ids = checks.listing(entry.get("anno_id"), f"{where}, key anno_id")
        targets = tuple(str(checks.number(one, f"{where}, key anno_id")) for one in ids)
    if kinds is not None:
        type_id = checks.number(entry.get("type_id"), f"{where}, key type_id")
        if type_id not in kinds:
            raise DataError(f"{where}: type_id {type_id} is not one of {list(kinds)}", checks.MEND)
        kind = kinds[type_id]
    else:
        # MeViS v2 has expressions that mean nothing; without masks nobody outside can tell which.
        kind = "no-target" if with_masks and not targets else "referring"
    return Expression(key, checks.sentence(entry["exp"], where), targets, kind, checks.tags(entry))
