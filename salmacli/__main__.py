"""``python -m salmacli`` is ``salma``."""

from __future__ import annotations

from salmacli.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
