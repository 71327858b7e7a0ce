"""The model card that lies beside saved weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.files.hub import HUB_ID

CARD = "README.md"
_TITLE = "A SALMA model"
_FILES = (".safetensors", ".bin", ".pt", ".pth")


def card(contents: Contents) -> str:
    """Markdown with the hub's metadata in front: what the model is, how it is used, where it comes from."""
    mllm, sam2 = contents.model.get("mllm", {}), contents.model.get("sam2", {})
    named = [mllm.get("base"), sam2.get("base"), *(one.get("name") for one in contents.provenance.get("sources", []))]
    bases = list(dict.fromkeys(str(name) for name in named if name and _on_hub(str(name))))
    metadata = {
        "library_name": "salma",
        "pipeline_tag": "image-segmentation",
        "tags": ["referring-video-object-segmentation", "video", "mask-generation", "salma"],
        **({"base_model": bases} if bases else {}),
    }
    native, cma = mllm.get("native", {}), contents.model.get("cma", {})
    text = native.get("text_config", {})
    parameters = sum(tensor.bytes // tensor.dtype.itemsize for tensor in contents.tensors.values())
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in contents.tensors.values()})
    facts = {
        "parameters": f"{parameters:,} ({', '.join(types)})",
        "multimodal LLM": f"{native.get('model_type', 'internvl')}, width {text.get('hidden_size', '?')}",
        "SAM 2": f"version {sam2.get('version', '2')}, frames of {sam2.get('image_size', '?')}² pixels"
        + (", its own mask decoder beside the trained one" if sam2.get("two_decoders") else ""),
        "mask-biased attention": f"{cma.get('mba')}, top {cma.get('topk')}" if cma.get("enabled") else "none",
        "inference mode": contents.model.get("inference_mode", "?"),
        "optimiser steps by SALMA": contents.step,
    }
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---

# {_TITLE}

It segments, in images and videos, the object that a sentence names.

```python
from salmacli import SalmaModel

model = SalmaModel.from_pretrained("this folder, or its id on the hub")
```

or `salma predict FRAMES --checkpoint FOLDER --text "the cat."`

| | |
|---|---|
{chr(10).join(f"| {name} | {value} |" for name, value in facts.items())}

## Where it comes from

{_origin(contents.provenance)}
"""


def _on_hub(name: str) -> bool:
    """Whether a name is of a model on the hub; paths may look like one."""
    return bool(HUB_ID.fullmatch(name)) and Path(name).suffix not in _FILES and not Path(name).exists()


def _origin(provenance: Mapping[str, Any]) -> str:
    trained = provenance.get("trained")
    sources = [*provenance.get("sources", []), *([trained] if trained else [])]
    if not sources:
        return "It was trained by `salma train`; `config.json` holds the run's whole config."
    lines = []
    for source in sources:
        lines.append(f"- `{source.get('name')}` ({source.get('layout')})")
        lines += [f"  - `{file}` SHA-256 `{digest}`" for file, digest in dict(source.get("files", {})).items()]
    return "\n".join([*lines, *(f"- {note}" for note in provenance.get("notes", []))])
