"""Ref-YouTube-VOS: one object per expression; the truth of ``valid`` lies with the organisers."""

from __future__ import annotations

from pathlib import Path

from salmacli.config.files import read_json
from salmacli.data.benchmarks import Benchmark
from salmacli.data.readers import checks
from salmacli.data.readers.ref_davis import NumberedSet, numbered_videos
from salmacli.data.records import Expression, Video


def open_refytvos(root: Path, split: str) -> Benchmark:
    """Opens Ref-YouTube-VOS.

    It has ``meta_expressions/<split>/meta_expressions.json``, ``<split>/JPEGImages``, and for training
    ``mask_dict.pkl`` or ``train/Annotations``.
    """
    checks.split_of(split, ("train", "valid"), "refytvos")
    meta = checks.first_of(root, (f"meta_expressions/{split}/meta_expressions.json",), "refytvos")
    frames = checks.first_of(root, (f"{split}/JPEGImages",), "refytvos")
    found = checks.read_videos(meta)
    if split == "train":
        masks = checks.first_of(root, ("mask_dict.pkl", "train/mask_dict.pkl", "train/Annotations"), "refytvos")
        videos = numbered_videos(found, meta, masks.is_dir())
        labels = root / "train" / "Annotations"
        return NumberedSet("refytvos", root, split, videos, frames, masks, labels if labels.is_dir() else None)
    test = root / "meta_expressions" / "test" / "meta_expressions.json"
    if test.is_file():
        # The file of valid lists the videos of both; only the rest is evaluated.
        other = checks.mapping(checks.mapping(read_json(test), str(test)).get("videos"), str(test))
        found = {name: video for name, video in found.items() if name not in other}
    videos = []
    for name, value in sorted(found.items()):
        where = f"{meta}, video {name}"
        with checks.part():
            video = checks.named_video(name, value, meta)
            sentences = tuple(
                Expression(key, checks.sentence(entry["exp"], where), (), tags=checks.tags(entry))
                for key, entry in checks.expressions(video, where).items()
            )
            videos.append(Video(name, checks.frame_names(video, where), sentences))
    return NumberedSet("refytvos", root, split, videos, frames, None)
