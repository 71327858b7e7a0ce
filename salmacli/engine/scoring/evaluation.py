"""What an evaluation found, and its files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from filelock import FileLock

import salmacli
from salmacli.config.files import legible, write_atomic
from salmacli.engine.scoring.problems import NAMED, Problem, named, per_kind

if TYPE_CHECKING:
    from salmacli.engine.scoring.protocols import Protocol

SCHEMA = 1
RESULTS = "results.json"
_LOCK = ".evaluation.lock"
_OURS = ("per_expression.*", "per_object.*", "per_frame.*", "*_results-*.csv")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        results: The content of ``results.json``.
        rows: One row per expression or object.
        frames: One row per predicted mask: its counts, its scores, and its problem if it has one.
        rows_name: Name of the files of ``rows``.
        texts: Further files by name, as the official tools write them.
    """

    results: dict[str, Any]
    rows: pd.DataFrame
    frames: pd.DataFrame
    rows_name: str = "per_expression"
    texts: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write all files; those of two evaluations that write at once into one folder never mix.

        ``results.json`` goes first and comes last: a folder without it holds an evaluation that was
        interrupted while it was written.

        Args:
            folder: Made where it is missing.

        Returns:
            The path of ``results.json``.

        Raises:
            ValueError: The results hold a NaN or an infinity.
        """
        files: dict[str, bytes | str] = {}
        for name, frame in ((self.rows_name, self.rows), ("per_frame", self.frames)):
            table = _table(frame)
            files[f"{name}.csv"] = _csv(table)
            files[f"{name}.parquet"] = _parquet(table)
        files |= self.texts
        results = json.dumps(self.results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / _LOCK):
            if (folder / RESULTS).exists():
                (folder / RESULTS).unlink()
                for pattern in _OURS:  # that evaluation may have been by other rules, with other files
                    for path in folder.glob(pattern):
                        path.unlink()
            for name, content in files.items():
                write_atomic(folder / name, content)
            write_atomic(folder / RESULTS, results)
        return folder / RESULTS


def results_of(
    origin: Mapping[str, Any],
    rules: Protocol,
    missing: str,
    scores: Mapping[str, float],
    counts: Mapping[str, Any],
    problems: Counter[Problem],
    extra: Counter[str],
    **more: Any,
) -> dict[str, Any]:
    """What every ``results.json`` holds.

    Args:
        origin: Benchmark, split, whether it is the synthetic one, and where the predictions come from.
        rules: By which scores were made.
        missing: What became of masks that are missing or do not fit.
        scores: The scores, 0 to 1.
        counts: How much was scored and left out.
        problems: What was wrong, and how many masks it reached.
        extra: What nobody asked for, and how many masks it has.
        more: What only some evaluations have.
    """
    return {
        "schema": SCHEMA,
        **origin,
        "protocol": rules.record(missing),
        "metrics": [metric for metric in rules.metrics if metric in scores],
        "scores": dict(scores),
        **more,
        "counts": {
            **counts,
            "missing": sum(problems.values()),
            "problems": per_kind(problems),
            "extra": sum(extra.values()),
        },
        "problems": named(problems),
        "extra": [{"where": legible(where), "masks": masks} for where, masks in list(extra.items())[:NAMED]],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "salma": salmacli.__version__,
    }


def _table(frame: pd.DataFrame) -> pa.Table:
    """As Arrow; a column in which nothing is known is one of strings, as it is where something is."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    types = [
        pa.field(column.name, pa.string() if pa.types.is_null(column.type) else column.type) for column in table.schema
    ]
    return table.cast(pa.schema(types))


def _csv(table: pa.Table) -> bytes:
    buffer = BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    return buffer.getvalue()


def _parquet(table: pa.Table) -> bytes:
    buffer = BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()
