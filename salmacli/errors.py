"""What SALMA raises when the input, and not SALMA, is at fault.

Every message is one line that says what is wrong, where, and how to mend it. The command line prints that
line and ends with the class's ``exit_code``; anything else that escapes is a bug of SALMA.
"""

from __future__ import annotations


class SalmaError(Exception):
    """Base of every error SALMA raises on purpose.

    Args:
        message: What is wrong and where (a file, a key, a value).
        mend: What to do about it; appended after a semicolon.
    """

    exit_code: int = 1

    def __init__(self, message: str, mend: str | None = None) -> None:
        self.mend = mend
        text = message if mend is None else f"{message}; {mend}"
        # Messages often quote another library's, which may span lines; the promise is one line.
        super().__init__(" ".join(text.split()))


class UsageError(SalmaError):
    """The command was called in a way that cannot be meant."""

    exit_code = 2


class ConfigError(SalmaError):
    """A configuration names an unknown key or a value that does not fit."""

    exit_code = 3


class DataError(SalmaError):
    """A data file is missing, broken or contradicts another."""

    exit_code = 4


class CheckpointError(SalmaError):
    """A checkpoint is missing, broken, unsafe or of another model."""

    exit_code = 4
