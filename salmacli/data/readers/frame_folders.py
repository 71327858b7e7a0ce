"""What video sets share: a folder of frames per video, and one big file that holds all masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from salmacli.config.files import read_json
from salmacli.data.benchmarks import Benchmark, Track
from salmacli.data.readers import checks
from salmacli.data.readers.plain_pickle import read_pickle
from salmacli.data.records import Expression, Video

# Such files are large: threads that ask at once wait for the first one instead of reading it too. One lock for
# all sets, as a lock of a set's own could not travel to the processes that load training data.
_READING = Lock()


class FrameFolders(Benchmark):
    """A set of ``<video>/<frame>.jpg`` whose targets are keys of one file of masks.

    Attributes:
        frames_root: Holds the videos' folders.
    """

    frames_root: Path

    def __init__(
        self,
        name: str,
        root: Path,
        split: str,
        videos: Sequence[Video],
        frames_root: Path,
        masks_path: Path | None,
    ) -> None:
        super().__init__(name, root, split, videos, masks_path)
        self.frames_root = frames_root
        self._files: dict[Path, dict[str, Any]] = {}

    def frame_path(self, video: Video, frame: str) -> Path:
        """See ``Benchmark``."""
        return self.frames_root / video.name / f"{frame}.jpg"

    def objects(self, video: Video, expression: Expression) -> list[Track] | None:
        """See ``Benchmark``."""
        if self.masks_path is None:
            return None
        masks = self.contents(self.masks_path)
        where = f"{self.masks_path}, video {video.name}, expression {expression.id}"
        return [checks.track(masks, key, where) for key in expression.targets]

    def contents(self, path: Path) -> dict[str, Any]:
        """A JSON file or pickle of masks by key, read when first asked for and kept.

        Raises:
            DataError: It is missing or broken.
        """
        with _READING:
            if path not in self._files:
                read = read_json(path) if path.suffix == ".json" else read_pickle(path)
                # Pickles have numbers for keys, JSON has strings of digits.
                self._files[path] = {str(key): value for key, value in checks.mapping(read, str(path)).items()}
            return self._files[path]
