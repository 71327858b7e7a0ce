"""Runs against benchmarks, from the ``results.json`` files and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from salmacli.config.files import read_json
from salmacli.engine.prediction.settings import told
from salmacli.engine.scoring.evaluation import SCHEMA
from salmacli.engine.scoring.protocols import PROTOCOLS, protocol_of
from salmacli.errors import DataError

METRICS = ("J", "F", "JF")  # the headline of results that name none


@dataclass(frozen=True)
class Result:
    """One evaluation.

    Attributes:
        path: Its ``results.json``.
        run: Name of the run's folder.
        content: What the file holds.
    """

    path: Path
    run: str
    content: Mapping[str, Any]

    @property
    def mode(self) -> str:
        """Inference mode, and the settings of prediction that were not the usual ones."""
        mode = str(self.content.get("mode") or self.path.parent.name)
        return " ".join([mode, *told(self.content.get("settings") or {})])

    @property
    def column(self) -> str:
        """What was scored, by rules other than the usual ones; synthetic numbers never stand beside real ones."""
        benchmark, protocol = self.content["benchmark"], (self.content.get("protocol") or {}).get("name")
        usual = protocol_of(benchmark).name if benchmark in PROTOCOLS else None
        name = f"{benchmark} {self.content['split']}"
        if protocol not in (None, usual):
            name += f" ({protocol})"
        return f"{name} (synthetic)" if self.content["synthetic"] else name

    @property
    def scores(self) -> dict[str, float]:
        """The headline: what the benchmark's protocol reports first."""
        return {metric: float(self.content["scores"][metric]) for metric in self.content.get("metrics", METRICS)}


@dataclass(frozen=True)
class Comparison:
    """Runs against benchmarks.

    Attributes:
        frame: One row per run and mode; columns are (benchmark, metric) and hold scores in 0..1 or NaN.
        spread: Standard deviations over seeds in the same layout, or None.
    """

    frame: pd.DataFrame
    spread: pd.DataFrame | None = None

    def columns(self) -> list[tuple[str, str]]:
        """(benchmark, metric) of each column."""
        return [(str(column[0]), str(column[1])) for column in self.frame.columns]

    def best(self) -> pd.DataFrame:
        """True where no row is higher; nowhere in a column with a single score."""
        highest = self.frame.eq(self.frame.max(axis=0), axis=1)
        return highest & (self.frame.notna().sum(axis=0) > 1)


def read_results(runs: Path) -> list[Result]:
    """Every evaluation of every run below ``runs``.

    Raises:
        DataError: There is none, or one is broken or of another schema.
    """
    paths = sorted(runs.glob("*/eval/*/*/results.json"))
    if not paths:
        raise DataError(f"there are no results in {runs}", "make some: salma eval mevis")
    return [Result(path, path.parents[3].name, _read(path)) for path in paths]


def compare(results: Iterable[Result], group_seeds: bool = False) -> Comparison:
    """Put results into rows (run, mode) and columns (benchmark, metric).

    Args:
        results: At least one.
        group_seeds: Runs whose results have the same config but for the seed become one row of means, with
            standard deviations (n - 1) as spread.
    """
    results = list(results)
    rows = [
        {
            "run": result.run,
            "mode": result.mode,
            "column": result.column,
            "config": _config(result),
            "metric": metric,
            "score": score,
        }
        for result in sorted(results, key=lambda result: result.column)
        for metric, score in result.scores.items()
    ]
    long = pd.DataFrame(rows)
    if group_seeds:
        long["run"] = long.groupby(["config", "mode"])["run"].transform(_group_name)
    means = _wide(long, "mean")
    # Rows of a single run have no spread, and pandas leaves them out.
    return Comparison(means, _wide(long, "std").reindex(means.index) if group_seeds else None)


def mixed_protocols(results: Iterable[Result]) -> list[str]:
    """Columns whose numbers were made by different rules and are not comparable."""
    rules: dict[str, set[str]] = {}
    for result in results:
        rules.setdefault(result.column, set()).add(json.dumps(result.content.get("protocol"), sort_keys=True))
    return [column for column, found in rules.items() if len(found) > 1]


def _read(path: Path) -> dict[str, Any]:
    again = "evaluate again with `salma eval`, or remove the file"
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no object", again)
    if content.get("schema") != SCHEMA:
        raise DataError(f"{path} has schema {content.get('schema')!r}, this version reads {SCHEMA}", again)
    for key, kind in (("benchmark", str), ("split", str), ("synthetic", bool), ("scores", dict)):
        if not isinstance(content.get(key), kind):
            raise DataError(f"{path}: {key} is {content.get(key)!r}", again)
    metrics = content.get("metrics", METRICS)
    if not isinstance(metrics, (list, tuple)) or not metrics or not all(isinstance(one, str) for one in metrics):
        raise DataError(f"{path}: metrics is {metrics!r}", again)
    for key in ("protocol", "settings"):
        if not isinstance(content.get(key) or {}, dict):
            raise DataError(f"{path}: {key} is {content[key]!r}", again)
    for metric in metrics:
        score = content["scores"].get(metric)
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise DataError(f"{path}: the score {metric} is {score!r}, not a number in 0..1", again)
    return content


def _config(result: Result) -> str:
    """The config without its seed; results without a config stand alone."""
    config = result.content.get("config")
    if not isinstance(config, dict):
        return f"run {result.run}"
    return json.dumps({key: value for key, value in config.items() if key != "seed"}, sort_keys=True)


def _group_name(runs: pd.Series[str]) -> str:
    names = sorted(set(runs))
    if len(names) == 1:
        return names[0]
    common = os.path.commonprefix(names).rstrip("-_. ")  # noqa: RUF071 - of names, character by character
    return f"{common or names[0] + '…'} ({len(names)} runs)"


def _wide(long: pd.DataFrame, how: str) -> pd.DataFrame:
    table = pd.pivot_table(
        long, index=["run", "mode"], columns=["column", "metric"], values="score", aggfunc=how, sort=False
    )
    columns = list(dict.fromkeys(zip(long["column"], long["metric"], strict=True)))
    return table.sort_index().reindex(columns=columns)
