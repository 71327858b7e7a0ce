"""The official PNG annotations of DAVIS and YouTube-VOS, in which a pixel's value is its object's number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from salmacli.errors import DataError


def read_plane(path: Path) -> NDArray[np.uint8]:
    """Reads one annotation.

    Returns:
        (H, W) object numbers, 0 is background.

    Raises:
        DataError: The file is missing, broken, or a colour picture.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L", "1"):
                raise DataError(f"{path} is a {picture.mode} picture, not object numbers", "give the indexed PNGs")
            # To grey would turn the palette's colours into values; the indices are what counts.
            return np.array(picture, dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(f"annotation {path} does not exist", "fetch the set's Annotations folder") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"annotation {path} cannot be read ({reason})", "fetch it again") from None
