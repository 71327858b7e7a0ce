"""Which model a file or folder holds, told by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from salmacli.checkpoints.files.deepspeed import deepspeed_folder
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.pickles import open_pickle
from salmacli.checkpoints.files.tensors import WEIGHTS, first_few, index_of, open_safetensors, read_index
from salmacli.config.files import read_json
from salmacli.errors import CheckpointError, DataError

FORMAT = "salma"
ADAPTER_FORMAT = "salma-adapter"
TRAINER_FORMAT = "salma-trainer"
SCHEMA = 1
CONFIG, TRAINER = "config.json", "ckpt.pth"

_KEYS = ("state_dict", "model", "module")  # under which trainers put a model's weights
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_ADAPTER_WEIGHTS = re.compile(rf"(adapter_)?{_WEIGHTS.pattern}")


class Layout(Enum):
    """What a checkpoint can be; the value says it to people."""

    SALMA_FOLDER = "SALMA checkpoint folder"
    SALMA_PTH = "SALMA checkpoint in one .pth"
    SALMA_ADAPTER = "SALMA adapter, only what was trained"
    TRAINING_V1 = "training .pth of Sa2VA (v1), only what was trained"
    TRAINING_V2 = "training .pth of Sa2VA (v2), only what was trained"
    TRAINING_CMA = "training .pth of Sa2VA with the CMA extension, only what was trained"
    DEEPSPEED = "DeepSpeed checkpoint directory"
    SA2VA = "released Sa2VA model"
    INTERNVL = "InternVL model in its original layout"
    INTERNVL_NATIVE = "InternVL model in the layout of transformers"
    QWEN_VL = "Qwen-VL model"
    SAM2 = "SAM 2 model"
    SALMA_BARE = "SALMA weights file without the config.json that belongs beside it"
    SALMA_TRAINER = "SALMA trainer state without the weights that belong beside it"
    UNKNOWN = "model of no known layout"

    @property
    def is_salma(self) -> bool:
        """Whether SALMA wrote it, whole."""
        return self in (Layout.SALMA_FOLDER, Layout.SALMA_PTH)


def detect(path: Path) -> Layout:
    """Say what lies at ``path`` without reading the weights.

    Args:
        path: A folder, or a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file. A file inside a SALMA checkpoint
            folder stands for the folder.

    Raises:
        CheckpointError: There is nothing there, the file is cut off or broken, or its pickle wants to run code.
    """
    if salma_folder(path) is not None:
        return Layout.SALMA_FOLDER
    if salma_folder(path, ADAPTER_FORMAT) is not None:
        return Layout.SALMA_ADAPTER
    if deepspeed_folder(path) is not None:
        return Layout.DEEPSPEED
    if path.is_dir():
        return _detect_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} is missing", "check the path; `salma train` makes checkpoints in runs/")
    if path.suffix == ".safetensors":
        return name_layout(open_safetensors(path))
    content = open_pickle(path)
    if not isinstance(content, Mapping):
        return Layout.UNKNOWN
    if content.get("format") == FORMAT:
        return Layout.SALMA_PTH
    if content.get("format") == TRAINER_FORMAT:
        return Layout.SALMA_TRAINER
    return name_layout(weights_in(content, path).tensors)


class Weights(NamedTuple):
    """What `weights_in` finds.

    Attributes:
        tensors: the weights by name, as the file has them: not checked yet.
        left_out: keys of the other sets of tensors beside them, such as ``ema_state_dict``.
    """

    tensors: Mapping[str, Any]
    left_out: tuple[str, ...]


def weights_in(content: Mapping[str, Any], path: Path) -> Weights:
    """The model's weights in an opened pickle: under one of the usual keys, or the pickle itself.

    Args:
        content: of `open_pickle`.
        path: the file, for messages.

    Raises:
        CheckpointError: several of the usual keys hold tensors.
    """
    sets = [str(key) for key, value in content.items() if _holds_tensors(value)]
    if len(found := [key for key in _KEYS if key in sets]) > 1:
        raise CheckpointError(
            f"{path} holds weights twice, under {' and '.join(found)}",
            "save the set that is meant in a file of its own",
        )
    usual = found or [key for key in _KEYS if isinstance(content.get(key), Mapping)]
    if not usual:
        return Weights(content, ())
    return Weights(content[usual[0]], tuple(key for key in sets if key != usual[0]))


def _holds_tensors(part: Any) -> bool:
    return isinstance(part, Mapping) and any(isinstance(value, LazyTensor) for value in part.values())


def salma_folder(path: Path, format_: str = FORMAT) -> Path | None:
    """The SALMA folder that ``path`` is or lies in as one of its weight files; else None.

    Args:
        path: A folder or a file.
        format_: Which kind of folder, as its ``config.json`` says.
    """
    weights = _ADAPTER_WEIGHTS if format_ == ADAPTER_FORMAT else _WEIGHTS
    of_it = path.name in (TRAINER, f"{WEIGHTS}.index.json") or weights.fullmatch(path.name)
    folder = path.parent if of_it else path
    if not (folder / CONFIG).is_file():
        return None
    content = read_config(folder)
    return folder if isinstance(content, Mapping) and content.get("format") == format_ else None


def read_config(folder: Path) -> Any:
    """A folder's ``config.json``.

    Raises:
        CheckpointError: It is missing or broken.
    """
    try:
        return read_json(folder / CONFIG)
    except DataError as error:
        raise CheckpointError(str(error)) from error


def check_schema(header: Mapping[str, Any], where: Path) -> None:
    """Refuse what another version of SALMA wrote.

    Raises:
        CheckpointError: The schema is another one.
    """
    schema = header.get("schema")
    if schema != SCHEMA:
        raise CheckpointError(
            f"{where} has schema {schema!r}, this SALMA reads {SCHEMA}", "use the SALMA that wrote it"
        )


def name_layout(names: Collection[str]) -> Layout:
    """The layout that has tensors of these names, whatever wrapper's prefix they carry."""
    text = [bare(str(name)) for name in names]

    def some(*patterns: str) -> bool:
        return all(any(re.search(pattern, name) for name in text) for pattern in patterns)

    if some(r"^mllm\.model\.(language_model|mlp1|vision_model)\."):
        if some(r"^grounding_encoder\.cma\."):
            return Layout.TRAINING_CMA
        return Layout.TRAINING_V2 if some(r"\.modules_to_save\.") else Layout.TRAINING_V1
    if some(r"^mllm\.model\.(model|lm_head)\."):
        return Layout.SALMA_BARE
    if some(r"^grounding_encoder\.sam2_model\.", r"^text_hidden_fcs\."):
        return Layout.SA2VA
    if some(r"^vision_model\.encoder\.layers\.\d+\.attn\.qkv"):
        return Layout.INTERNVL
    if some(r"^(model\.)?vision_tower\.encoder\.layer\."):
        return Layout.INTERNVL_NATIVE
    if some(r"^(model\.)?visual\.blocks\.\d+\.attn\.qkv"):
        return Layout.QWEN_VL
    if some(r"^sam_mask_decoder\.", r"^image_encoder\.trunk\."):
        return Layout.SAM2
    return Layout.UNKNOWN


def bare(name: str) -> str:
    """A tensor's name without what wrappers for several devices (``module.``) and compilers (``_orig_mod.``) add."""
    while (shorter := re.sub(r"^(module|_orig_mod)\.", "", name)) != name:
        name = shorter
    return name.replace("._orig_mod.", ".")


def refuse_wrapped(names: Collection[str], place: str) -> None:
    """A wrapper's prefix is told, not taken off in silence: the file was saved in another way than it is meant.

    Raises:
        CheckpointError: some names carry one.
    """
    if wrapped := sorted(name for name in names if bare(name) != name):
        prefix = wrapped[0].removesuffix(bare(wrapped[0]))
        raise CheckpointError(
            f"{place}: {first_few(wrapped)} begin with {prefix}, so the file was saved from inside a wrapper",
            f"save the wrapped model's own state_dict, or take {prefix} off every name",
        )


def _detect_folder(path: Path) -> Layout:
    found = [layout for layout in _folder_layouts(path) if layout is not Layout.UNKNOWN]
    if found:
        return found[0]
    inside = sorted(folder for folder in path.glob("**/step-*") if salma_folder(folder))
    if inside:
        raise CheckpointError(f"{path} holds {len(inside)} checkpoints", f"name one of them, such as {inside[-1]}")
    if any(True for _ in _weight_files(path)):
        return Layout.UNKNOWN
    raise CheckpointError(
        f"{path} holds no checkpoint", "name a folder with config.json and model.safetensors, or a file"
    )


def _folder_layouts(path: Path) -> Iterator[Layout]:
    """What each kind of file in a folder says; a folder may hold one model in several forms."""
    for kind in ("safetensors", "bin"):
        if index := index_of(path, kind):
            yield name_layout(read_index(index))
    if names := [name for file in sorted(path.glob("*.safetensors")) for name in open_safetensors(file)]:
        yield name_layout(names)
    for file in _weight_files(path):
        if file.suffix != ".safetensors":
            yield detect(file)


def _weight_files(path: Path) -> Iterator[Path]:
    for pattern in ("*.safetensors", "pytorch_model*.bin", "*.pt"):
        yield from sorted(path.glob(pattern))
