"""What `salma data verify` found, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from salmacli.data.benchmarks import Benchmark
from salmacli.data.talks import TalkSet
from salmacli.engine.verify import KINDS, Findings

SHOWN = 3  # faults of a kind in the table


def summary(found: Benchmark | TalkSet, findings: Findings, left_out: Mapping[str, int], quick: bool) -> dict[str, Any]:
    """Everything that is known of the set.

    Args:
        found: The set.
        findings: What was found in it.
        left_out: What is left out on purpose, by reason.
        quick: Whether no picture was decoded.
    """
    return {
        "set": found.name,
        "root": str(found.root),
        "split": found.split,
        "synthetic": found.synthetic,
        "quick": quick,
        "whole": not findings.faults,
        "counts": dict(findings.counts),
        "left_out": dict(left_out),
        "faults": [
            {"kind": kind, "count": findings.faults[kind], "first": findings.first[kind]}
            for kind in KINDS
            if findings.faults[kind]
        ],
    }


def tables(told: Mapping[str, Any]) -> Group:
    """What there is, and what is to be mended.

    Args:
        told: What `summary` gives.
    """
    what = f"{told['set']} {told['split']}" + (" (synthetic)" if told["synthetic"] else "")
    title = f"{what}: {told['root']}"
    there = Table(show_header=False)
    there.add_column()
    there.add_column(justify="right")
    for name, count in told["counts"].items():
        there.add_row(name, f"{count:,}")
    for reason, count in told["left_out"].items():
        there.add_row(escape(f"left out: {reason}"), f"{count:,}")
    if told["whole"]:
        return Group(
            Text(title), there, "whole" + (", as far as can be told without decoding pictures" if told["quick"] else "")
        )
    mend = Table()
    mend.add_column("kind")
    mend.add_column("count", justify="right")
    mend.add_column("the first of them", overflow="fold")
    for fault in told["faults"]:
        lines = fault["first"][:SHOWN]
        if fault["count"] > len(lines):
            lines = [*lines, "…"]
        mend.add_row(fault["kind"], f"{fault['count']:,}", escape("\n".join(lines)))
    return Group(Text(title), there, "to be mended:", mend)
