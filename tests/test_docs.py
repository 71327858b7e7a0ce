"""What the documentation says is what the program does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import BaseModel

from salmacli.cli import app
from salmacli.config.schema import CmaConfig, DataConfig, LossConfig, PredictConfig, TrainConfig
from salmacli.engine.scoring.label_folders import SCORINGS
from salmacli.engine.scoring.protocols import PROTOCOLS

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "protocols.md").read_text(encoding="utf-8")
SECTIONS = {
    heading: " ".join(body.split())
    for heading, _, body in (section.partition("\n") for section in TEXT.split("\n## ")[1:])
}
OF_BENCHMARKS = [(benchmark, protocol) for benchmark, found in PROTOCOLS.items() for protocol in found.values()]
OF_LABELS = [(None, protocol) for protocol in SCORINGS.values()]


def section_of(benchmark, name):
    """The section whose heading has both in backticks."""
    wanted = {f"`{word}`" for word in (benchmark, name) if word is not None}
    (found,) = [body for heading, body in SECTIONS.items() if wanted <= set(re.findall(r"`[^`]+`", heading))]
    return found


@pytest.mark.parametrize(("benchmark", "protocol"), [*OF_BENCHMARKS, *OF_LABELS])
def test_rules_stand_in_the_documentation_word_by_word(benchmark, protocol):
    rules = protocol.record("error")
    section = section_of(benchmark, protocol.name)
    for word in ("frames", "void", "matching", "empty", "overall", "rounding", "differs"):
        assert f"- **{word}**: {' '.join(rules[word].split())}" in section, (benchmark, protocol.name, word)


def test_no_section_is_about_a_protocol_that_is_gone():
    known = {"davis"} | set(SCORINGS) | set(PROTOCOLS) | {name for found in PROTOCOLS.values() for name in found}
    for heading in SECTIONS:
        assert set(re.findall(r"`([^`]+)`", heading)) <= known, heading


def test_command_lines_name_options_that_exist():
    command = typer.main.get_command(app).get_command(None, "eval")
    options = {name for parameter in command.params for name in parameter.opts}
    lines = re.findall(r"^salma eval .*$", TEXT, flags=re.MULTILINE)
    assert len(lines) > 10
    for line in lines:
        words = line.split()[2:]
        assert words[0] in PROTOCOLS, line
        assert {word for word in words if word.startswith("--")} <= options, line
        if "--protocol" in words:
            assert words[words.index("--protocol") + 1] in PROTOCOLS[words[0]], line
        if "--scoring" in words:
            assert words[words.index("--scoring") + 1] in SCORINGS, line


@pytest.mark.parametrize(
    ("page", "sections"),
    [("prediction", [PredictConfig]), ("attention", [CmaConfig]), ("training", [DataConfig, LossConfig, TrainConfig])],
)
def test_settings_stand_in_the_documentation_as_in_the_schema(page, sections):
    text = (Path(__file__).resolve().parents[1] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    rows = [row for section in sections for row in _settings(section)]
    assert len(rows) > 10
    assert re.findall(r"^\| `([a-z_0-9.]+)` \| (\S+|\[[^|]*\]) \| (.+) \|$", text, flags=re.MULTILINE) == rows


def _settings(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, default as YAML has it, and description."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{path}{name}.")
        else:
            yield (
                f"{path}{name}",
                "–"
                if field.is_required()
                else yaml.safe_dump(field.default, default_flow_style=True, width=200).split("\n")[0],
                str(field.description),
            )
