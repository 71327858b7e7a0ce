"""Pictures in which a pixel's value is its object's number: DAVIS's and YouTube-VOS's annotations, and results."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from salmacli.data.plain_png import is_bomb, read_plain_png
from salmacli.errors import DataError

VOID = 255  # nobody says what is there
Labels = NDArray[np.uint8]

_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for PNGs


class LabelError(DataError):
    """A label picture cannot be used.

    Args:
        message: What is wrong and where.
        mend: What to do about it.
        kind: See the attribute.

    Attributes:
        kind: "frame" where the file is missing, "mode" where it holds colours or more than 8 bits, "unreadable"
            where it is broken.
    """

    def __init__(self, message: str, mend: str | None = None, *, kind: str = "unreadable") -> None:
        super().__init__(message, mend)
        self.kind = kind


def folder_names(path: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are the system's."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def picture_names(path: Path) -> list[str]:
    """Names of the PNGs in a folder without suffix, sorted; hidden ones are the system's."""
    return sorted(entry.stem for entry in path.glob("*.png") if not entry.name.startswith("."))


def read_labels(path: Path) -> Labels:
    """Reads one label picture, a PNG.

    Returns:
        (H, W) object numbers as stored, whatever colours a palette gives them; 0 is background. Perhaps read-only.
        Grey values of 2 or 4 bits come as Pillow scales them to 8.

    Raises:
        LabelError: The file is missing, broken, no PNG, or not indexed or grey with at most 8 bits a pixel.
    """
    try:
        content = path.read_bytes()
        plain = read_plain_png(content)
        if plain is not None:
            return plain
        if is_bomb(content):
            raise LabelError(f"label picture {path} has more pixels than any frame", "write it again")
        # Of the other formats some lose labels (JPEG), and one starts a program (EPS).
        with Image.open(BytesIO(content), formats=("PNG",)) as picture:
            if picture.mode not in ("P", "L", "1"):
                raise LabelError(
                    f"{path} is a picture of mode {picture.mode}, not of object numbers",
                    "save it indexed or grey, with 8 bits a pixel",
                    kind="mode",
                )
            return np.array(picture, dtype=np.uint8)
    except (FileNotFoundError, NotADirectoryError):
        raise LabelError(
            f"label picture {path} does not exist", "check the folder, or write it again", kind="frame"
        ) from None
    except UnidentifiedImageError:
        raise LabelError(
            f"label picture {path} cannot be read (it is no whole PNG)", "fetch or write it again"
        ) from None
    except _BROKEN as error:
        raise LabelError(f"label picture {path} cannot be read ({error})", "fetch or write it again") from None
