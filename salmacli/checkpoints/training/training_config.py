"""A training's own configuration, for what its weights do not say: LoRA's rank and α.

Sa2VA's configurations are Python programs. They come from strangers: they are read as text and never run.
"""

from __future__ import annotations

import ast
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

import yaml

from salmacli.checkpoints.training.lora import LoraSettings
from salmacli.config.files import read_json
from salmacli.errors import ConfigError, DataError

_RANKS = ("r", "lora_r", "lora_rank", "rank")
_PREFERRED = "llm_lora"  # Sa2VA's name for the LLM's LoRA
_VISION = "visual_encoder_lora"  # and for the vision tower's, which has an α of its own
_MEND = "state it with --lora-alpha"
_HARMLESS = (None, True, False, "gaussian", "orthogonal")  # ways to start LoRA that leave the base's weights alone
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Mult: operator.mul,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def read_lora_settings(path: Path) -> LoraSettings:
    """LoRA's rank and α from a training's configuration.

    Args:
        path: Sa2VA's ``.py``, a peft ``adapter_config.json``, or any YAML or JSON file with a ``lora_alpha`` in it.

    Raises:
        ConfigError: It cannot be read, or says nothing or several things about LoRA.
    """
    try:
        settings = _only(_read(path), str(path))
    except RecursionError as error:
        raise ConfigError(f"{path} contains itself, or is nested too deeply", _MEND) from error
    if settings is None:
        raise ConfigError(f"{path} has no lora_alpha that can be read without running it", _MEND)
    return settings


def lora_settings_in(text: str, where: str) -> LoraSettings | None:
    """LoRA's rank and α from the configuration that a trainer wrote into its file as text; None if it says nothing.

    Raises:
        ConfigError: It says several things, or such that cannot be meant.
    """
    try:
        return _only(_Program(ast.parse(text)).values(), where)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError):
        return None


def _only(content: Any, where: str) -> LoraSettings | None:
    sections = list(_sections(content, "", set()))
    preferred = [section for key, section in sections if key == _PREFERRED]
    settings = _one(preferred or [section for _, section in sections], where)
    if settings is None or not preferred:
        return settings
    return replace(settings, vision=_one([section for key, section in sections if key == _VISION], where))


def _one(sections: Iterable[Mapping[str, Any]], where: str) -> LoraSettings | None:
    settings = {_settings(section, where) for section in sections}
    if len(settings) > 1:
        raise ConfigError(f"{where} states several lora_alpha: {', '.join(sorted(map(str, settings)))}", _MEND)
    return settings.pop() if settings else None


def _read(path: Path) -> Any:
    if path.suffix == ".json":
        try:
            return read_json(path)
        except DataError as error:
            raise ConfigError(str(error)) from error
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error})", "check the path") from error
    if path.suffix in (".yaml", ".yml"):
        try:
            return yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # the latter from dates that are none
            raise ConfigError(f"{path} is not valid YAML ({error})", "mend it") from error
    try:
        return _Program(ast.parse(text)).values()
    except (SyntaxError, ValueError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{path} is not Python ({error})", "name a .py, .yaml or .json file") from error


def _sections(content: Any, key: str, done: set[tuple[int, str]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a ``lora_alpha``, and the key it stands under.

    YAML may refer to one mapping from many places: `done` keeps its visits as few as there are keys for it.
    """
    if (id(content), key) in done:
        return
    if isinstance(content, Mapping):
        if "lora_alpha" in content:
            yield key, content
        for name, value in content.items():
            yield from _sections(value, str(name), done)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _sections(value, key, done)
    else:
        return
    done.add((id(content), key))


def _settings(section: Mapping[str, Any], where: str) -> LoraSettings:
    alpha, rank = section["lora_alpha"], next((section[name] for name in _RANKS if name in section), None)
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha <= sys.float_info.max:
        raise ConfigError(f"{where}: lora_alpha is {alpha!r}, not a number above 0", _MEND)
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank <= 0):
        raise ConfigError(f"{where}: LoRA's r is {rank!r}, not a number above 0", _MEND)
    if unequal := [name for name in ("rank_pattern", "alpha_pattern") if section.get(name)]:
        raise ConfigError(f"{where}: {unequal[0]} gives modules values of their own, which are not merged here", _MEND)
    if (start := section.get("init_lora_weights")) not in _HARMLESS:
        raise ConfigError(
            f"{where}: init_lora_weights is {start!r}, which may have changed the base's own weights",
            "merge it where it was trained",
        )
    root = section.get("use_rslora", None if rank is None else False)  # a whole LoRA section means peft's default
    if not isinstance(root, (bool, NoneType)):
        raise ConfigError(f"{where}: use_rslora is {root!r}, not true or false", "mend it")
    return LoraSettings(float(alpha), rank, root)


class _Program:
    """The values of a program's top-level names, as far as plain data goes; the rest is None."""

    def __init__(self, module: ast.Module) -> None:
        self._names: dict[str, Any] = {}
        for statement in module.body:
            if isinstance(statement, ast.Assign):
                value = self._value(statement.value)
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        self._names[target.id] = value
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
                self._names[statement.target.id] = self._value(statement.value)

    def values(self) -> dict[str, Any]:
        return self._names

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._names.get(name)
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return {key.value: self._value(value) for key, value in pairs if isinstance(key, ast.Constant)}
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self._value(item) for item in items]
            case ast.Call(keywords=keywords):  # dict(type=LoraConfig, r=128, …) and LoraConfig(r=128, …) alike
                return {keyword.arg: self._value(keyword.value) for keyword in keywords if keyword.arg}
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                one, other = self._value(left), self._value(right)
                if isinstance(one, (int, float)) and isinstance(other, (int, float)):
                    return _ARITHMETIC[type(op)](one, other)
        return None
