"""Which model a file holds, told by the names of its tensors."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from salmacli.config.files import read_json
from salmacli.errors import CheckpointError, DataError

FORMAT = "salma"
TRAINER_FORMAT = "salma-trainer"
SCHEMA = 1
CONFIG, WEIGHTS, TRAINER = "config.json", "model.safetensors", "ckpt.pth"


class Layout(Enum):
    """What a checkpoint can be; the value says it to people."""

    SALMA_FOLDER = "SALMA checkpoint folder"
    SALMA_PTH = "SALMA checkpoint in one .pth"
    TRAINING_V1 = "training .pth of Sa2VA (v1), only what was trained"
    TRAINING_V2 = "training .pth of Sa2VA (v2), only what was trained"
    TRAINING_CMA = "training .pth of Sa2VA with the CMA extension, only what was trained"
    DEEPSPEED = "DeepSpeed checkpoint directory"
    SA2VA = "released Sa2VA model"
    INTERNVL = "InternVL model in its original layout"
    INTERNVL_NATIVE = "InternVL model in the layout of transformers"
    SAM2 = "SAM 2 model"
    SALMA_BARE = "SALMA weights file without the config.json that belongs beside it"
    SALMA_TRAINER = "SALMA trainer state without the weights that belong beside it"
    UNKNOWN = "model of no known layout"

    @property
    def is_salma(self) -> bool:
        """Whether SALMA wrote it."""
        return self in (Layout.SALMA_FOLDER, Layout.SALMA_PTH)


def detect(path: Path) -> Layout:
    """Say what lies at ``path`` without reading the weights.

    Args:
        path: A folder, or a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file. A file inside a SALMA
        checkpoint
            folder stands for the folder.

    Raises:
        CheckpointError: There is nothing there, the file is cut off or broken, or its pickle wants to run
        code.
    """
    if salma_folder(path) is not None:
        return Layout.SALMA_FOLDER
    if path.is_dir():
        return _detect_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} is missing", "check the path; `salma train` makes checkpoints in runs/")
    if path.suffix == ".safetensors":
        return name_layout(safetensors_names(path))
    content = read_pickle(path)
    if not isinstance(content, Mapping):
        return Layout.UNKNOWN
    if content.get("format") == FORMAT:
        return Layout.SALMA_PTH
    if content.get("format") == TRAINER_FORMAT:
        return Layout.SALMA_TRAINER
    for key in ("state_dict", "model", "module"):
        if isinstance(content.get(key), Mapping):
            return name_layout(content[key])
    return name_layout(content)


def salma_folder(path: Path) -> Path | None:
    """The SALMA checkpoint folder that ``path`` is or lies in as one of its weight files; else None."""
    folder = path.parent if path.name in (TRAINER, WEIGHTS) else path
    if not (folder / CONFIG).is_file():
        return None
    try:
        content = read_json(folder / CONFIG)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return folder if isinstance(content, Mapping) and content.get("format") == FORMAT else None


def name_layout(names: Collection[str]) -> Layout:
    """The layout that has tensors of these names."""
    text = [str(name) for name in names]

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
    if some(r"^sam_mask_decoder\.", r"^image_encoder\.trunk\."):
        return Layout.SAM2
    return Layout.UNKNOWN


def safetensors_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file.

    Raises:
        CheckpointError: The file is missing, cut off or of another kind.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise broken(path, error) from error


def read_pickle(path: Path) -> Any:
    """Read a PyTorch file of plain data; nothing in it can run.

    Raises:
        CheckpointError: The file is missing, cut off, of another kind, or names a global that is not plain
        data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        names = _unsafe_globals(path, error)
        if names:
            raise CheckpointError(
                f"{path} wants to run {', '.join(names)} while it is read, which weights never need",
                "take the file from a source you trust, as safetensors if there is one",
            ) from error
        raise broken(path, error) from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        IndexError,
        TypeError,
    ) as error:
        # What torch raises for a damaged file depends on where the damage lies.
        raise broken(path, error) from error


def broken(path: Path, error: Exception) -> CheckpointError:
    """The one line for a file that cannot be read."""
    if not path.exists():
        return CheckpointError(f"{path} is missing", "check the path")
    if path.stat().st_size == 0:
        return CheckpointError(f"{path} is empty", "copy or save it again")
    size, why = path.stat().st_size, str(error).strip()
    # An unpickling error's text is torch's long advice, which would mislead here.
    reason = "" if not why or isinstance(error, pickle.UnpicklingError) else f"; {why.splitlines()[0][:120]}"
    return CheckpointError(f"{path} is cut off or no checkpoint ({size} bytes{reason})", "copy or save it again")


def _detect_folder(path: Path) -> Layout:
    if any(path.rglob("mp_rank_*_model_states.pt")) or any(path.rglob("zero_pp_rank_*")):
        return Layout.DEEPSPEED
    if index := next(path.glob("*.safetensors.index.json"), None):
        return name_layout(list(_weight_map(index)))
    names = [name for file in sorted(path.glob("*.safetensors")) for name in safetensors_names(file)]
    if names:
        return name_layout(names)
    for file in [*sorted(path.glob("pytorch_model*.bin")), *sorted(path.glob("*.pt"))]:
        return detect(file)
    inside = sorted(folder for folder in path.glob("**/step-*") if salma_folder(folder))
    if inside:
        raise CheckpointError(f"{path} holds {len(inside)} checkpoints", f"name one of them, such as {inside[-1]}")
    raise CheckpointError(
        f"{path} holds no checkpoint", "name a folder with config.json and model.safetensors, or a file"
    )


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors files", "download it again") from error


def _unsafe_globals(path: Path, error: pickle.UnpicklingError) -> list[str]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, OSError, pickle.UnpicklingError, EOFError):
        names = []  # not a zip archive: the error's own words are all there is
    return sorted(names) or re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
