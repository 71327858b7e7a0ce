"""The one form in which every benchmark is read, whatever its layout on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from salmacli.data import rle
from salmacli.data.records import Expression, Video
from salmacli.errors import DataError

MARKER = "synthetic.json"
DEFAULT_SPLITS = {
    "mevis": "valid_u",
    "revos": "valid",
    "davis": "valid",
    "refytvos": "valid",
    "refcoco": "val",
    "refcoco+": "val",
    "refcocog": "val",
    "own": "train",
}


class Benchmark:
    """Videos, expressions and, where the set has them in public, masks.

    Attributes:
        name: "mevis", "revos", "davis", "refytvos", "refcoco", "refcoco+", "refcocog" or "own".
        split: Of the set's own names.
        root: The set's folder.
        synthetic: Whether the folder carries the marker of the synthetic benchmark.
        videos: Images are videos of one frame.
    """

    name: str
    split: str
    root: Path
    synthetic: bool
    videos: tuple[Video, ...]

    def __init__(self, name: str, root: Path, split: str, videos: Sequence[Video]) -> None:
        self.name = name
        self.root = root
        self.split = split
        self.synthetic = (root / MARKER).is_file()
        self.videos = tuple(videos)
        self._sizes: dict[str, tuple[int, int]] = {}

    def frame_path(self, video: Video, frame: str) -> Path:
        """The picture of a frame."""
        raise NotImplementedError

    def truth(self, video: Video, expression: Expression) -> list[rle.RLE] | None:
        """The target, one RLE per frame of the video, empty where it is absent.

        Returns:
            None where the set has no public truth.

        Raises:
            DataError: A mask is missing, broken or of another size than its frame.
        """
        raise NotImplementedError

    def size(self, video: Video) -> tuple[int, int]:
        """(height, width) of a video, from the header of its first frame.

        Raises:
            DataError: The frame is missing or no picture.
        """
        if video.name not in self._sizes:
            path = self.frame_path(video, video.frames[0])
            try:
                with Image.open(path) as picture:
                    self._sizes[video.name] = (picture.height, picture.width)
            except FileNotFoundError:
                raise DataError(f"frame {path} does not exist", "check the folder, or copy the frames again") from None
            except (OSError, UnidentifiedImageError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise DataError(f"frame {path} cannot be read ({reason})", "copy it again") from None
        return self._sizes[video.name]

    def unite(self, video: Video, tracks: Sequence[Sequence[Mapping[str, object] | None]], where: str) -> list[rle.RLE]:
        """Unites the masks of several objects frame by frame.

        Args:
            video: Gives the number of frames and their size.
            tracks: Per object one RLE or None per frame.
            where: File and key, for messages.
        """
        size = self.size(video)
        for track in tracks:
            if len(track) != len(video.frames):
                raise DataError(
                    f"{where}: {len(track)} masks for {len(video.frames)} frames of video {video.name}",
                    "fetch the masks that belong to these expressions",
                )
        united = []
        for index, frame in enumerate(video.frames):
            present = [mask for mask in (track[index] for track in tracks) if mask is not None]
            try:
                united.append(rle.union(present, size))
            except DataError as error:
                raise DataError(
                    f"{where}, video {video.name}, frame {frame}: {error}", "fetch the file again"
                ) from None
        return united


def open_benchmark(name: str, root: Path, split: str | None = None) -> Benchmark:
    """Opens a benchmark in its official layout.

    Args:
        name: A key of ``DEFAULT_SPLITS``.
        root: Its folder, e.g. ``video_datas/mevis``.
        split: By default the one people report.

    Raises:
        DataError: Name or split do not exist, or the files are missing or broken.
    """
    # Imported here since the readers build on the class above.
    from salmacli.data.readers import own, ref_davis, ref_youtube, refcoco, video_sets

    if name not in DEFAULT_SPLITS:
        raise DataError(f"there is no benchmark {name!r}", f"choose one of {', '.join(DEFAULT_SPLITS)}")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{name}: folder {root} does not exist", "give the folder of the data set, or leave it out")
    split = split or DEFAULT_SPLITS[name]
    if name == "mevis":
        return video_sets.open_mevis(root, split)
    if name == "revos":
        return video_sets.open_revos(root, split)
    if name == "davis":
        return ref_davis.open_davis(root, split)
    if name == "refytvos":
        return ref_youtube.open_refytvos(root, split)
    if name == "own":
        return own.open_own(root, split)
    return refcoco.open_refcoco(name, root, split)
