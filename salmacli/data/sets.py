"""Every set that SALMA trains on, by name, and where each usually lies."""

from __future__ import annotations

from pathlib import Path

from salmacli.config.schema import TrainingSet
from salmacli.data.benchmarks import Benchmark
from salmacli.data.talks import TalkSet

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


def usual_place(name: TrainingSet, data_root: Path) -> Path:
    """Where a set lies below the folder of all data, in the layout that Sa2VA's training data unpack to.

    Args:
        name: The set.
        data_root: Holds ``video_datas``, ``ref_seg``, ``glamm_data``, …
    """
    return data_root / _PLACES[name]


def open_set(name: TrainingSet, root: Path, split: str) -> Benchmark | TalkSet:
    """Opens a set in its official layout.

    Args:
        name: The set.
        root: Its folder, as `usual_place` says.
        split: Of the set's own names.

    Raises:
        DataError: The split does not exist, or files are missing or broken.
    """
    raise NotImplementedError
