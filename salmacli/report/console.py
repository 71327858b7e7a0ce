"""The two voices: results on stdout, everything for the person who waits on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console, RenderableType


def say(message: str) -> None:
    """One line to stderr, as it is: no markup, no wrapping."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def result(content: RenderableType) -> None:
    """A result to stdout: text as it is, anything else (a table) rendered by rich."""
    if isinstance(content, str):
        sys.stdout.write(content + "\n")
        return
    # A pipe has no width; rich would assume 80 columns and cut tables that a program or a file could hold.
    console = Console(file=sys.stdout) if sys.stdout.isatty() else Console(file=sys.stdout, width=160)
    console.print(content)


def emit_json(obj: Any) -> None:
    """One JSON object to stdout.

    Raises:
        ValueError: ``obj`` holds a NaN or an infinity, which JSON does not know.
    """
    sys.stdout.write(json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
