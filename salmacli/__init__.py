"""SALMA: segments in video, frame by frame, the objects that a sentence names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salmacli.checkpoints.pretrained import SalmaModel

__version__ = "0.1.0"
__all__ = ["SalmaModel", "__version__"]


def __getattr__(name: str) -> Any:
    """`SalmaModel` when it is first asked for: it needs torch and transformers, which take seconds to import."""
    if name == "SalmaModel":
        from salmacli.checkpoints.pretrained import SalmaModel

        return SalmaModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
