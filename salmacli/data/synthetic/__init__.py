"""A small procedural benchmark, written in the official layouts of the real ones."""

from __future__ import annotations

from salmacli.data.synthetic.make import ensure_synthetic, open_synthetic

__all__ = ["ensure_synthetic", "open_synthetic"]
