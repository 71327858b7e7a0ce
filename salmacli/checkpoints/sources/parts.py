"""What files contribute to a model: one opened source, in SALMA's names, whatever its layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.layouts import Layout
from salmacli.config.files import sha256


@dataclass(frozen=True)
class Parts:
    """A whole model, or a part such as an MLLM or a SAM 2.

    Attributes:
        name: As the user named it: a hub id or a path.
        place: The folder or file it was found in.
        layout: Its layout.
        files: The files that hold the weights, for hashes.
        model: What it says about the config: sections of `ModelConfig` as plain data (``mllm``, ``sam2``, …).
        tokenizer: File name → bytes; empty where it brings none.
        tensors: SALMA name (``mllm.model.…``, ``grounding.…``, ``text_hidden_fcs.…``, ``cma.…``) → tensor.
        notes: What the user should know about it, one line each.
    """

    name: str
    place: Path
    layout: Layout
    files: tuple[Path, ...]
    model: Mapping[str, Any]
    tokenizer: Mapping[str, bytes]
    tensors: Mapping[str, LazyTensor]
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Who it is: its name, layout and the SHA-256 of its files, which are read once."""
        files = {file.name: sha256(file) for file in self.files}
        return {"name": self.name, "layout": self.layout.name.lower(), "files": files}
