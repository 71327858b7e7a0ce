"""Video chat of Chat-UniVi: conversations about the videos of ActivityNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from salmacli.data.frames import FrameSource
from salmacli.data.readers import checks
from salmacli.data.readers.talk_files import RecordedTalks, characters, conversation, file_below
from salmacli.data.records import Talk
from salmacli.errors import DataError


class ChatUniVi(RecordedTalks):
    """``[{"id", "video": file, "conversations": [{"from", "value"}]}]`` and ``Activity_Videos``.

    Source: ``ChatUniVi_Dataset.py`` of Sa2VA, also for the ``.mkv`` that lie there as ``.mp4``.

    Attributes:
        folder: Holds the videos.
    """

    still = False
    folder: Path

    def __init__(self, root: Path, split: str) -> None:
        self.folder = checks.first_of(root, ("Activity_Videos",), "chatunivi")
        super().__init__("chatunivi", root, split, [checks.first_of(root, ("video_chat.json",), "chatunivi")])

    def measure(self, record: Any) -> tuple[int, bool]:
        """See ``RecordedTalks``."""
        return characters(record.get("conversations")) if isinstance(record, dict) else 0, True

    def talk(self, n: int) -> Talk:
        """See ``TalkSet``."""
        where = self.where(n)
        return Talk(where, tuple(conversation(self.record(n).get("conversations"), where)))

    def frames(self, n: int) -> FrameSource:
        """See ``TalkSet``."""
        from salmacli.data.video_file import VideoFile  # PyAV is slow to import

        where = f"{self.where(n)}, key video"
        file = file_below(self.folder, self.record(n).get("video"), where)
        if not file.is_file() and file.suffix == ".mkv":
            file = file.with_suffix(".mp4")
        if not file.is_file():
            raise DataError(f"video {file} does not exist ({where})", "fetch the set's videos again")
        return VideoFile(file, whole=False)
