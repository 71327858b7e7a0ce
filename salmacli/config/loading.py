"""Presets, files and ``--set a.b=value`` → validated settings of a run or of prediction; every error at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from salmacli.config.schema import PredictConfig, RunConfig, Settings
from salmacli.errors import ConfigError, UsageError

Kind = TypeVar("Kind", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML whose booleans are true and false: `off` is a choice of some settings, and old YAML takes it for one."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def preset_names() -> list[str]:
    """Names that ``--preset`` takes."""
    folder = resources.files("salmacli.config") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_preset(name_or_path: str) -> dict[str, Any]:
    """The raw mapping of a shipped preset, or of a YAML file of the user's.

    Raises:
        UsageError: there is neither a preset nor a file of that name.
        ConfigError: the file is not YAML, or not a mapping.
    """
    if name_or_path in preset_names():
        text = (resources.files("salmacli.config") / "presets" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8")
    else:
        raise UsageError(
            f"no preset and no file named {name_or_path!r}",
            f"take one of {', '.join(preset_names())}, or the path of a YAML file",
        )
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{name_or_path} is not YAML{place}", "mend that line") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{name_or_path} holds no settings", "write sections such as `train:` and `data:`")
    return content


def assign(content: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply ``a.b=value`` texts (values in YAML) to a copy of the mapping.

    Raises:
        UsageError: a text has no ``=`` or its value is not YAML.
    """
    result: dict[str, Any] = _copy(content)
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise UsageError(f"--set {text!r} has no value", "write --set KEY=VALUE")
        try:
            parsed = yaml.load(value, _Loader)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {text!r}: the value is not YAML", "quote it") from error
        node = result
        *sections, key = path.split(".")
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UsageError(f"--set {text!r}: {section} is not a section", f"write --set {section}=VALUE")
        node[key] = parsed
    return result


def load_config(preset: str = "tiny", assignments: Iterable[str] = ()) -> RunConfig:
    """Read, change and validate.

    Args:
        preset: a shipped preset's name or a YAML file.
        assignments: ``a.b=value`` texts, applied in order.

    Raises:
        ConfigError: one line that names every wrong key with its value and, for unknown keys, a near one.
    """
    return validate(assign(read_preset(preset), assignments), RunConfig, "mend them in the file or with --set")


def load_predict(assignments: Iterable[str] = (), **given: Any) -> PredictConfig:
    """The settings of prediction.

    Args:
        assignments: ``a.b=value`` texts, applied in order; they win over `given`.
        given: Settings by name, such as ``mode="frames"``; those that are None are left to their defaults.

    Raises:
        ConfigError: As `load_config`.
        UsageError: A text cannot be read.
    """
    content = {key: value for key, value in given.items() if value is not None}
    return validate(assign(content, assignments), PredictConfig, "mend them with --set")


def validate(content: Mapping[str, Any], kind: type[Kind], mend: str) -> Kind:
    """Turn a raw mapping into settings.

    Args:
        content: As YAML or JSON give it.
        kind: What it is to become.
        mend: What the user does about errors.

    Raises:
        ConfigError: See `load_config`.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = [_fault(dict(entry), kind) for entry in error.errors()]
        raise ConfigError(f"{len(faults)} wrong setting(s): " + " | ".join(faults), mend) from error


def first_fault(error: ValidationError, section: str) -> str:
    """The first thing that is wrong with a section that came with a file: ``section.key: what``."""
    entry = error.errors()[0]
    return f"{section}.{'.'.join(str(part) for part in entry['loc'])}: {entry['msg']}"


def _fault(entry: dict[str, Any], kind: type[BaseModel]) -> str:
    path = list(entry["loc"])
    name = ".".join(str(part) for part in path)
    if entry["type"] == "extra_forbidden":
        known = _fields(kind, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        return f"{name} is unknown, " + (f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}")
    if entry["type"] == "missing":
        return f"{name} is missing"
    if entry["type"] in ("model_type", "model_attributes_type") and path:
        keys = [f"{name}.{key}" for key in _fields(kind, path)]
        return f"{name} is a section: set {' or '.join(filter(None, (', '.join(keys[:-1]), keys[-1])))}"
    message = str(entry["msg"]).removeprefix("Value error, ")
    # A fault between the fields of a section names them in its message; the whole section would drown it.
    value = "" if isinstance(entry["input"], dict) else f" = {entry['input']!r}"
    return f"{name}{value}: {message}" if name else message


def _fields(model: type[BaseModel], path: list[Any]) -> list[str]:
    """Known keys of the section of `model` at `path`."""
    for part in path:
        if not isinstance(part, str):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        inner = [annotation, *getattr(annotation, "__args__", ())]
        models = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)


def _copy(node: Any) -> Any:
    return {key: _copy(value) for key, value in node.items()} if isinstance(node, dict) else node
