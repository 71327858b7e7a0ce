"""Every set that SALMA trains on, by name, and where each usually lies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from salmacli.config.schema import TrainingSet
from salmacli.data.benchmarks import Benchmark, open_benchmark
from salmacli.data.readers.checks import tolerant
from salmacli.data.talks import TalkSet
from salmacli.errors import DataError

# Below the folder of all data. Source: the training config of Sa2VA; Ref-DAVIS17 and own data are not in it.
_PLACES: dict[TrainingSet, str] = {
    "mevis": "video_datas/mevis",
    "revos": "video_datas/revos",
    "davis": "video_datas/davis17",
    "refytvos": "video_datas/rvos",
    "refcoco": "",
    "refcoco+": "",
    "refcocog": "",
    "grefcoco": "",
    "own": "own",
    "refsav": "video_datas",
    "gcg-grandf": "glamm_data",
    "gcg-refcocog": "glamm_data",
    "gcg-flickr30k": "glamm_data",
    "gcg-openpsg": "glamm_data",
    "llava": "llava_data",
    "chatunivi": "video_datas/chat_univi",
    "osprey": "osprey-724k",
}


NAMES: tuple[TrainingSet, ...] = tuple(_PLACES)


def usual_place(name: TrainingSet, data_root: Path) -> Path:
    """Where a set lies below the folder of all data, in the layout that Sa2VA's training data unpack to.

    Args:
        name: The set.
        data_root: Holds ``video_datas``, ``ref_seg``, ``glamm_data``, …
    """
    return data_root / _PLACES[name]


def open_set(name: TrainingSet, root: Path, split: str) -> Benchmark | TalkSet:
    """Opens a set in its official layout, strictly: what is broken in its file of expressions ends it.

    Args:
        name: The set.
        root: Its folder, as `usual_place` says.
        split: Of the set's own names.

    Raises:
        DataError: Folder or split do not exist, or files are missing or broken.
    """
    # Readers build on the classes above, and most runs need few of them.
    from salmacli.data.readers import chat_univi, gcg, llava, osprey, ref_sav

    openers: dict[str, Callable[[Path, str], Benchmark | TalkSet]] = {
        "refsav": ref_sav.open_refsav,
        "llava": llava.Llava,
        "chatunivi": chat_univi.ChatUniVi,
        "osprey": osprey.Osprey,
        **{one: partial(gcg.open_gcg, one) for one in _PLACES if one.startswith("gcg-")},
    }
    if name not in openers:
        return open_benchmark(name, root, split)
    if not root.is_dir():
        raise DataError(f"{name}: folder {root} does not exist", "give the folder of the data set")
    return openers[name](root, split)


def open_tolerantly(name: TrainingSet, root: Path, split: str) -> tuple[Benchmark | TalkSet, list[DataError]]:
    """Opens a set for training: what is broken in its file of expressions is left out, and told.

    Returns:
        The set, and what was left out of it. Talks are not read yet, and tell of themselves when they are.

    Raises:
        DataError: As `open_set`, where nothing can be left out.
    """
    with tolerant() as faults:
        return open_set(name, root, split), faults
