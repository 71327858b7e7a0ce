"""`SalmaModel`: the model as users of the library know it, with its ways from and to folders and the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi, constants

from salmacli.checkpoints.combine import combine
from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.decoders import ORIGINAL, with_originals
from salmacli.checkpoints.empty import empty_model
from salmacli.checkpoints.files.tensors import MAX_SHARD_BYTES, WEIGHTS
from salmacli.checkpoints.load import CheckpointInfo, build_model, fill, load_checkpoint
from salmacli.checkpoints.save import contents_of, write_folder
from salmacli.checkpoints.sources.opening import open_source
from salmacli.checkpoints.sources.parts import Parts
from salmacli.config.schema import ModelConfig
from salmacli.errors import CheckpointError, ConfigError
from salmacli.models.mllm import chat_of
from salmacli.models.salma import Salma
from salmacli.models.tokenizer import build_tokenizer


class SalmaModel(Salma):
    """A `Salma` that knows files.

    Attributes:
        info: Where the weights came from; None for fresh ones.
    """

    info: CheckpointInfo | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> SalmaModel:
        """The model of a SALMA checkpoint, in evaluation mode. No code of the checkpoint's runs.

        Args:
            name_or_path: A folder or file, or a hub id, which is fetched unless it is in the cache already.
            device: Where the weights are read to.
            dtype: What they become, but for tables of positions (see `load_checkpoint`).
            revision: Branch, tag or commit on the hub.

        Raises:
            CheckpointError: There is no such checkpoint, or it is broken, unsafe or of another model.
        """
        model, info = load_checkpoint(name_or_path, device, dtype, revision=revision, model_class=cls)
        model.info = info
        return model

    @classmethod
    def build(cls, config: ModelConfig, expressions: Iterable[str]) -> SalmaModel:
        """A model to train: from the pretrained models that the config names, else with fresh weights.

        Args:
            config: ``mllm.base`` and ``sam2.base`` are hub ids or paths, or null.
            expressions: Of the training data; a fresh tokenizer is learnt from them.

        Raises:
            CheckpointError: A base is missing, broken or unsafe, or together they are no whole model.
            ConfigError: The config says otherwise than a base does.
        """
        if config.mllm.base is None and config.sam2.base is None:
            _check_decoders(config, [])
            return super().build(config, expressions)  # type: ignore[return-value]
        model, contents, info = cls._of_bases(config)
        fill(model, contents.tensors, info.path)
        model.info = info
        return model

    @classmethod
    def outline(cls, config: ModelConfig, expressions: Iterable[str]) -> SalmaModel:
        """The model of `build` without memory for its tensors; bases are opened and checked, their weights not read.

        Args:
            config, expressions: As of `build`; errors, too.
        """
        if config.mllm.base is not None or config.sam2.base is not None:
            return cls._of_bases(config)[0]
        _check_decoders(config, [])
        tokenizer = build_tokenizer(expressions, config.mllm.vocabulary, chat_of(config.mllm))
        return cast(SalmaModel, empty_model(config, tokenizer, cls))

    @classmethod
    def _of_bases(cls, config: ModelConfig) -> tuple[SalmaModel, Contents, CheckpointInfo]:
        """An empty model, what fills it, and where that comes from."""
        opened = [open_source(base) for base in (config.mllm.base, config.sam2.base) if base is not None]
        for part in opened:
            _check_agreement(config, part)
        parts = with_originals(opened)
        _check_decoders(config, parts)
        # What the config leaves to its defaults, a base that is a whole model decides.
        # How many frames are read is the data's business, too, so the config alone says it.
        own = config.model_dump(mode="json", include=(config.model_fields_set - {"mllm", "sam2"}) | {"clip_frames"})
        two = config.sam2.two_decoders if "two_decoders" in config.sam2.model_fields_set else None
        contents = combine(parts, own, seed=torch.initial_seed(), two_decoders=two)
        for section in ("mllm", "sam2"):
            contents.model[section]["base"] = getattr(config, section).base
        place = Path(" + ".join(part.name for part in parts))
        info = CheckpointInfo(place, parts[0].layout, 0, {}, contents.provenance)
        return build_model(contents, place, cls), contents, info

    def save_pretrained(self, folder: str | Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> Path:
        """Write the model as a folder that `from_pretrained` reads, whole or not at all.

        Args:
            folder: New, empty, or an older SALMA checkpoint, which is replaced.
            max_shard_bytes: Larger models are cut into files of at most so many bytes.

        Raises:
            CheckpointError: The disk lacks the room.
            UsageError: Something else stands there.
        """
        info = self.info
        step, config, provenance = (info.step, info.run_config, info.provenance) if info else (0, {}, {})
        contents = contents_of(self, config=config, step=step, provenance=provenance)
        write_folder(Path(folder), contents, max_shard_bytes=max_shard_bytes)
        return Path(folder)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, revision: str | None = None, message: str = "SALMA model"
    ) -> str:
        """Upload the model to the Hugging Face hub, as the user that is logged in.

        Args:
            repo_id: ``name`` or ``organisation/name``; made if it is not there.
            private: Whether a new repository is; None leaves it to the organisation's default.
            revision: Branch, which must be there already; None is the main one.
            message: Of the commit.

        Returns:
            The commit's address.

        Raises:
            CheckpointError: ``HF_HUB_OFFLINE`` is set, or the disk lacks the room for the files.
        """
        if constants.HF_HUB_OFFLINE:
            raise CheckpointError(f"{repo_id} cannot be uploaded: HF_HUB_OFFLINE is set", "unset it")
        api = HfApi(library_name="salma")
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            commit: Any = api.upload_folder(
                repo_id=repo,
                folder_path=self.save_pretrained(Path(folder) / "model"),
                revision=revision,
                commit_message=message,
                # Weights of an earlier upload that was cut into other shards would be strays.
                delete_patterns=["*.safetensors", f"{WEIGHTS}.index.json"],
            )
        return str(commit.commit_url)


def _check_decoders(config: ModelConfig, parts: Sequence[Parts]) -> None:
    """A second decoder is SAM 2's own: it cannot start fresh, nor from one that was trained with language."""
    if config.sam2.two_decoders and not any(name.startswith(ORIGINAL) for part in parts for name in part.tensors):
        raise ConfigError(
            "model.sam2.two_decoders is true, but nothing brings SAM 2's original mask decoder",
            "name a pretrained SAM 2 as model.sam2.base, or leave two_decoders out",
        )


def _check_agreement(config: ModelConfig, part: Parts) -> None:
    """What the config says explicitly of a pretrained part must be so: its weights cannot follow."""
    said = config.model_dump(mode="json", exclude_unset=True)
    for section in ("mllm", "sam2"):
        for key, ours, theirs in _conflicts(said.get(section, {}), part.model.get(section, {})):
            raise ConfigError(
                f"model.{section}.{key} = {ours!r}, but {part.name} has {theirs!r}",
                "leave it out, or name another base",
            )


def _conflicts(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    # The vocabulary grows by our special tokens, and a second decoder is made where it is wanted.
    for key in ours.keys() & theirs.keys() - {"base", "vocab_size", "two_decoders"}:
        if isinstance(ours[key], Mapping) and isinstance(theirs[key], Mapping):
            yield from _conflicts(ours[key], theirs[key], f"{path}{key}.")
        elif _plain(ours[key]) != _plain(theirs[key]):
            yield f"{path}{key}", ours[key], theirs[key]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
