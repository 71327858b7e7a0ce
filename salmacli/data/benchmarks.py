"""The one form in which every benchmark is read, whatever its layout on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, TypeVar

from salmacli.data import rle
from salmacli.data.frames import FrameSource, frame_size, pictures
from salmacli.data.records import Expression, Video
from salmacli.errors import DataError
from salmacli.metrics.bits import Bits

MARKER = "synthetic.json"
DEFAULT_SPLITS = {
    "mevis": "valid_u",
    "revos": "valid",
    "davis": "valid",
    "refytvos": "valid",
    "refcoco": "val",
    "refcoco+": "val",
    "refcocog": "val",
    "grefcoco": "val",
    "own": "train",
}

Track = Sequence[Mapping[str, Any] | None]  # an object's RLE per frame, None where it is not seen
Mask = TypeVar("Mask")


class Benchmark:
    """Videos, expressions and, where the set has them in public, masks.

    A reader says where frames lie and which objects an expression means; what follows from that is here.

    Attributes:
        name: A key of ``DEFAULT_SPLITS``.
        split: Of the set's own names.
        root: The set's folder.
        synthetic: Whether the folder carries the marker of the synthetic benchmark.
        videos: Images are videos of one frame.
        masks_path: File or folder of the masks; None without public truth.
        still: Whether the set is one of pictures, not of videos.
    """

    name: str
    split: str
    root: Path
    synthetic: bool
    videos: tuple[Video, ...]
    masks_path: Path | None
    still: bool = False

    def __init__(
        self, name: str, root: Path, split: str, videos: Sequence[Video], masks_path: Path | None = None
    ) -> None:
        self.name = name
        self.root = root
        self.split = split
        self.synthetic = (root / MARKER).is_file()
        self.videos = tuple(videos)
        self.masks_path = masks_path
        self._sizes: dict[str, tuple[int, int]] = {}

    @property
    def public(self) -> bool:
        """Whether the truth is public, so that predictions can be scored here."""
        return self.masks_path is not None

    def frame_path(self, video: Video, frame: str) -> Path:
        """The picture of a frame."""
        raise NotImplementedError

    def frames(self, video: Video) -> FrameSource:
        """The frames of a video, as stored; nothing is read yet."""
        files = [self.frame_path(video, frame) for frame in video.frames]
        return pictures(files, files[0].parent, self.still)

    def objects(self, video: Video, expression: Expression) -> list[Track] | None:
        """What the expression means, object by object as the set annotates them, not yet checked.

        Returns:
            One track per target, none where nothing is meant; None where the set has no public truth.

        Raises:
            DataError: A mask is missing or broken.
        """
        raise NotImplementedError

    def truth_path(self, video: Video) -> str:
        """The file or folder of a video's masks, for messages."""
        return str(self.masks_path)

    def truth(self, video: Video, expression: Expression) -> list[rle.RLE] | None:
        """The target, one RLE per frame of the video, empty where it is absent.

        Returns:
            None where the set has no public truth.

        Raises:
            DataError: A mask is missing, broken or of another size than its frame.
        """
        tracks = self.objects(video, expression)
        return None if tracks is None else self.unite(video, tracks, self.truth_path(video))

    def truth_bits(self, video: Video, expression: Expression) -> list[Bits] | None:
        """The same as ``truth``, ready to be counted, without a picture being made.

        Returns:
            One mask per frame of the video; None where the set has no public truth.

        Raises:
            DataError: As ``truth``.
        """
        tracks = self.objects(video, expression)
        return None if tracks is None else self._united(video, tracks, self.truth_path(video), _union_of_bits)

    def annotated(self, video: Video) -> list[Track] | None:
        """Everything that is annotated in a video, one track per object; None where the set does not say.

        Raises:
            DataError: The video is missing, or its masks are broken.
        """
        return None

    def annotated_bits(self, video: Video) -> list[Bits] | None:
        """All of it together, one mask per frame; None where the set does not say.

        Raises:
            DataError: As ``truth``.
        """
        tracks = self.annotated(video)
        where = f"{self.root}, masks of all that is annotated"
        return None if tracks is None else self._united(video, tracks, where, _union_of_bits)

    def size(self, video: Video) -> tuple[int, int]:
        """(height, width) of a video, from the header of its first frame.

        Raises:
            DataError: The frame is missing or no picture.
        """
        if video.name not in self._sizes:
            self._sizes[video.name] = frame_size(self.frame_path(video, video.frames[0]))
        return self._sizes[video.name]

    def unite(self, video: Video, tracks: Sequence[Track], where: str) -> list[rle.RLE]:
        """Unites the masks of several objects frame by frame.

        Args:
            video: Gives the number of frames and their size.
            tracks: Per object one RLE or None per frame.
            where: The file, for messages.

        Raises:
            DataError: A track is too long or too short, or an RLE broken or of another size.
        """
        return self._united(video, tracks, where, rle.union)

    def _united(
        self,
        video: Video,
        tracks: Sequence[Track],
        where: str,
        union: Callable[[list[Mapping[str, Any]], tuple[int, int]], Mask],
    ) -> list[Mask]:
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
                for mask in present:
                    if rle.size_of(mask) != size:
                        raise DataError(f"RLE is of size {rle.size_of(mask)} where the frame is {size}")
                united.append(union(present, size))
            except DataError as error:
                raise DataError(
                    f"{where}, video {video.name}, frame {frame}: {error}", "fetch the file again"
                ) from None
        return united


def _union_of_bits(rles: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> Bits:
    return reduce(or_, map(rle.bits, rles)) if rles else Bits.empty(*size, by_columns=True)


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
