"""Names of models → folders on this machine: a path, else what was fetched before, else a download."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from salmacli.checkpoints.files.tensors import read_index
from salmacli.errors import CheckpointError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.\w+$")


def resolve(name_or_path: str | Path, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The folder or file that a user names, on this machine.

    A path that exists is taken as it is. A hub id is looked up in the cache of the hub's library, and only what is not
    there whole is downloaded, unless ``HF_HUB_OFFLINE`` is set.

    Args:
        name_or_path: A folder, a file, or a hub id such as ``OpenGVLab/InternVL2_5-1B``.
        patterns: Files to fetch, such as ``*.safetensors``.
        revision: Branch, tag or commit on the hub.

    Raises:
        CheckpointError: There is no such path and no such model in the cache or on the hub, or no access to it.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    name = name_or_path.as_posix() if isinstance(name_or_path, Path) else name_or_path
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name} is missing", "check the path; `salma train` makes checkpoints in runs/")
    cached = _cached(name, patterns, revision)
    if cached is not None:
        return cached
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(
            f"{name} is no path and not (whole) in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set",
            f"fetch it where there is a network: hf download {name}",
        )
    return _download(name, patterns, revision)


def is_here(name_or_path: str | Path, patterns: Sequence[str]) -> bool:
    """Whether `resolve` would find it without a download."""
    name = str(name_or_path)
    return Path(name).exists() or (HUB_ID.fullmatch(name) is not None and _cached(name, patterns, None) is not None)


def _cached(name: str, patterns: Sequence[str], revision: str | None) -> Path | None:
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if _whole(folder, patterns) else None


def _whole(folder: Path, patterns: Sequence[str]) -> bool:
    """Whether a download that may have been interrupted, or asked for less, holds all weights."""
    files = {file.name for file in folder.iterdir()}
    weights = {file for file in files if _any(file, patterns) and _any(file, _WEIGHTS)}
    indexed: set[str] = set()
    for index in folder.glob("*.index.json"):
        indexed |= {shard for shard in read_index(index).values() if _any(shard, patterns)}
    shards = {file for file in weights if _SHARD.search(file)}
    return bool(weights) and indexed <= files and shards <= indexed


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _download(name: str, patterns: Sequence[str], revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name} is on the hub for those who accept its terms",
            f"accept them on https://huggingface.co/{name} and log in: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{name} has no revision {revision!r}", "check it on the hub") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name} is neither a path here nor a model on the hub",
            "check the spelling, or log in if it is private: hf auth login",
        ) from error
    except Exception as error:  # also those of the network's library beneath the hub's
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(
            f"{name} is no path here, and the hub could not be asked for it ({why})", "check the network, or fetch it"
        ) from error
