"""Makes the synthetic benchmark, and finds the one that is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from salmacli.config.files import read_json, sha256, write_json
from salmacli.data.benchmarks import MARKER, Benchmark, open_benchmark
from salmacli.data.synthetic.files import FOLDERS, frames_folder
from salmacli.data.synthetic.layouts import write_layouts
from salmacli.data.synthetic.scene import FRAMES, HEIGHT, WIDTH
from salmacli.data.synthetic.video import SPLITS, Story, make_video
from salmacli.errors import DataError

VERSION = 2  # 2 added gRefCOCO
SIZES = {"train": 700, "valid": 40, "held_out": 40}


class Progress(Protocol):
    """What is told while making; ``salmacli.engine.progress`` has the same, further up."""

    def start(self, task: str, total: int, done: int = 0) -> None:
        """A task of so many steps begins."""

    def advance(self, n: int = 1, **figures: float) -> None:
        """Some steps are done."""

    def finish(self) -> None:
        """The task is over."""


def make(
    root: Path,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Makes the benchmark in all layouts below ``root``. The same seed and sizes give the same bytes.

    Args:
        root: A folder that does not exist yet; it appears only when everything is written.
        seed: Of every video.
        sizes: Videos per split, ``{"train", "valid", "held_out"}``; by default ``SIZES``.
        processes: Worker processes; 1 works without any, None takes one per core.
        progress: Told one step per video.

    Raises:
        DataError: ``root`` holds something already, or a size is not positive.
    """
    sizes = {**SIZES, **(sizes or {})}
    if set(sizes) != set(SPLITS) or min(sizes.values()) < 1:
        raise DataError(f"sizes of the synthetic benchmark must be positive, not {sizes}", "ask for at least 1 video")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} is not empty", "name another folder, or delete this one")
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".part", dir=root.parent))
    try:
        building.chmod(0o755)
        stories = _make_videos(building, seed, sizes, processes, progress)
        write_layouts(building, stories)
        _write_marker(building, seed, sizes)
        if root.exists():
            root.rmdir()
        building.rename(root)
    except OSError:
        # Somebody else may have been faster with the same; then theirs is as good as ours.
        shutil.rmtree(building, ignore_errors=True)
        if not (root / MARKER).is_file():
            raise
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return root


def _make_videos(
    root: Path, seed: int, sizes: dict[str, int], processes: int | None, progress: Progress | None
) -> dict[str, list[Story]]:
    jobs = [(seed, split, index, frames_folder(root, split)) for split in SPLITS for index in range(sizes[split])]
    stories: dict[str, list[Story]] = {split: [] for split in SPLITS}
    if progress is not None:
        progress.start("synthetic videos", len(jobs))
    processes = processes or min(os.cpu_count() or 1, 8)
    if processes == 1 or len(jobs) < 32:
        made = map(_job, jobs)
        for job, story in zip(jobs, made, strict=True):
            _keep(stories, job, story, progress)
    else:
        # Spawned, not forked: the caller may hold threads (torch) that do not survive a fork.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for job, story in zip(jobs, pool.map(_job, jobs, chunksize=8), strict=True):
                _keep(stories, job, story, progress)
    if progress is not None:
        progress.finish()
    return stories


def _job(job: tuple[int, str, int, Path]) -> Story:
    return make_video(*job)


def _keep(
    stories: dict[str, list[Story]], job: tuple[int, str, int, Path], story: Story, progress: Progress | None
) -> None:
    stories[job[1]].append(story)
    if progress is not None:
        progress.advance()


def _write_marker(root: Path, seed: int, sizes: dict[str, int]) -> None:
    files = sorted(path for path in root.rglob("*") if path.suffix in (".json", ".pkl", ".p"))
    marker: dict[str, Any] = {
        "schema": 1,
        "version": VERSION,
        "seed": seed,
        "videos": sizes,
        "frames": FRAMES,
        "size": [HEIGHT, WIDTH],
        "files": {path.relative_to(root).as_posix(): sha256(path) for path in files},
    }
    for folder in dict.fromkeys(FOLDERS.values()):
        write_json(root / folder / MARKER, {key: marker[key] for key in ("schema", "version", "seed", "videos")})
    write_json(root / MARKER, marker)


def ensure_synthetic(root: Path | None = None, progress: Progress | None = None) -> Path:
    """Gives the folder of the synthetic benchmark, making it where there is none or an older version.

    Args:
        root: By default ``data/synthetic`` in the working directory.
        progress: Told one step per video while it is made.

    Raises:
        DataError: The folder holds a newer version, or files that are not as they were made.
    """
    root = Path(root) if root is not None else Path("data") / "synthetic"
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return make(root, progress=progress)
    marker = _read_marker(root)
    if marker["version"] < VERSION:
        # What somebody changed by hand is not ours to replace.
        _check_files(root, marker)
        _make_again(root, marker, progress)
    else:
        check_synthetic(root)
    return root


def check_synthetic(root: Path) -> dict[str, Any]:
    """Compares a synthetic benchmark with its marker file.

    Returns:
        The marker's contents.

    Raises:
        DataError: It is of another version, incomplete or changed; the message says which file.
    """
    marker = _read_marker(root)
    if marker["version"] != VERSION:
        raise DataError(
            f"{root} is version {marker['version']} of the synthetic benchmark, needed is {VERSION}", _mend(root)
        )
    _check_files(root, marker)
    return marker


def _mend(root: Path) -> str:
    return f"delete {root} and run: salma data make --out {root}"


def _read_marker(root: Path) -> dict[str, Any]:
    if not (root / MARKER).is_file():
        raise DataError(f"{root} holds something, but not a synthetic benchmark (no {MARKER})", _mend(root))
    marker = read_json(root / MARKER)
    types = {"version": int, "seed": int, "videos": dict, "files": dict}
    if not isinstance(marker, dict) or not all(isinstance(marker.get(key), kind) for key, kind in types.items()):
        raise DataError(f"{root / MARKER} is not as it was made", _mend(root))
    return marker


def _check_files(root: Path, marker: dict[str, Any]) -> None:
    for name, checksum in marker["files"].items():
        path = root / name
        if not path.is_file() or sha256(path) != checksum:
            raise DataError(f"{path} is missing or not as it was made", _mend(root))


def _make_again(root: Path, marker: dict[str, Any], progress: Progress | None) -> None:
    """Puts today's version, of the same seed and sizes, in the place of an older one."""
    try:
        building = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".part", dir=root.parent))
        old, new = building / "old", building / "new"
        try:
            make(new, marker["seed"], marker["videos"], progress=progress)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        root.rename(old)
        new.rename(root)
        # Contact sheets, and whatever else people put beside what was made.
        for path in old.rglob("*"):
            place = root / path.relative_to(old)
            if path.is_file() and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                path.rename(place)
        shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{root} is version {marker['version']} of the synthetic benchmark, and version {VERSION} cannot be put in "
            f"its place ({error})",
            _mend(root),
        ) from None


def open_synthetic(name: str, root: Path | None = None, split: str | None = None) -> Benchmark:
    """Opens one layout of the synthetic benchmark, making it where there is none."""
    if name not in FOLDERS:
        raise DataError(f"there is no benchmark {name!r}", f"choose one of {', '.join(FOLDERS)}")
    return open_benchmark(name, ensure_synthetic(root) / FOLDERS[name], split)
