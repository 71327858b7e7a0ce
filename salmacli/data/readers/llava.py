"""LLaVA-665k: instructions over pictures of COCO, GQA, OCR-VQA, TextVQA and Visual Genome, and some over none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from salmacli.data.frames import FrameSource, pictures
from salmacli.data.readers import checks
from salmacli.data.readers.talk_files import RecordedTalks, characters, conversation, file_below
from salmacli.data.records import Talk

_FILE = "llava_v1_5_mix665k.json"


class Llava(RecordedTalks):
    """``[{"id", "image": path or nothing, "conversations": [{"from", "value"}]}]``.

    Source: ``finetune_task.sh`` and the data page of LLaVA 1.5, and ``vqa_dataset.py`` of Sa2VA.

    Attributes:
        folder: Holds the pictures.
    """

    folder: Path

    def __init__(self, root: Path, split: str) -> None:
        self.folder = checks.first_of(root, ("llava_images", "images"), "llava")
        file = checks.first_of(root, (f"LLaVA-Instruct-150K/{_FILE}", _FILE), "llava")
        super().__init__("llava", root, split, [file])

    def measure(self, record: Any) -> tuple[int, bool]:
        """See ``RecordedTalks``."""
        if not isinstance(record, dict):
            return 0, False
        return characters(record.get("conversations")), record.get("image") is not None

    def talk(self, n: int) -> Talk:
        """See ``TalkSet``."""
        where = self.where(n)
        return Talk(where, tuple(conversation(self.record(n).get("conversations"), where)))

    def frames(self, n: int) -> FrameSource | None:
        """See ``TalkSet``."""
        image = self.record(n).get("image")
        if image is None:
            return None
        file = file_below(self.folder, image, f"{self.where(n)}, key image")
        return pictures([file], file, still=True)
