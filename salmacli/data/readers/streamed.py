"""JSON files too large to be kept: their parts are found once, and read again when they are asked for.

LLaVA-665k is a gigabyte of text; as Python objects it would be several, in every process that loads data.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from salmacli.errors import DataError

_CHUNK = 1 << 22  # bytes
_LONGEST = 1 << 28  # characters of one part; a file that is broken is not read whole in search of an end
_NEAR = 16  # characters: an escape or a word that the end of what is read cuts is no longer
_SPACE = " \t\n\r"
_MEND = "fetch the file again"


@dataclass(frozen=True)
class Part:
    """A value within a file.

    Attributes:
        key: Of the file's outermost object; "" where it is a list.
        value: What stands there.
        start, end: Bytes in the file.
    """

    key: str
    value: Any
    start: int
    end: int


def parts(path: Path, opened: Container[str] = ()) -> Iterator[Part]:
    """What the list or object in a file holds, one after the other.

    Args:
        path: The file.
        opened: Keys of the outermost object whose lists come element by element, too.

    Raises:
        DataError: The file is missing or no such JSON; what comes before a fault in it is given first.
    """
    try:
        with path.open("rb") as file:
            yield from _parts(_Text(path, file), opened)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is missing", "fetch it, or check the folder") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "check its permissions") from None


def read_part(path: Path, start: int, end: int) -> Any:
    """The value between two bytes of a file.

    Raises:
        DataError: It is not there any more.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            return json.loads(file.read(end - start))
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path} is not what it was when it was opened", "leave the file while it is read") from None


def _parts(text: _Text, opened: Container[str]) -> Iterator[Part]:
    first = text.peek()
    if first == "[":
        yield from _elements(text, "")
    elif first == "{":
        yield from _entries(text, opened)
    else:
        text.fail("neither a list nor an object begins here")
    if text.peek():
        text.fail("something follows the end")


def _elements(text: _Text, key: str) -> Iterator[Part]:
    text.take("[")
    while text.peek() != "]":
        yield text.value(key)
        if text.peek() != "]":
            text.take(",")
    text.take("]")


def _entries(text: _Text, opened: Container[str]) -> Iterator[Part]:
    text.take("{")
    while text.peek() != "}":
        key = text.value("").value
        if not isinstance(key, str):
            text.fail("a key is needed here")
        text.take(":")
        if key in opened and text.peek() == "[":
            yield from _elements(text, key)
        else:
            yield text.value(key)
        if text.peek() != "}":
            text.take(",")
    text.take("}")


class _Text:
    """A file's text, of which only a stretch is held."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._coming = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder(parse_constant=self._no_number)
        self._held, self._at, self._byte, self._over = "", 0, 0, False
        if file.read(3) == codecs.BOM_UTF8:  # Windows tools put it in front
            self._byte = 3
        else:
            file.seek(0)

    def peek(self) -> str:
        """The character that comes next, white space aside; "" at the end."""
        while True:
            begin = self._at
            while self._at < len(self._held) and self._held[self._at] in _SPACE:
                self._at += 1
            self._byte += self._at - begin
            if self._at < len(self._held):
                return self._held[self._at]
            if self._over:
                return ""
            self._more(_CHUNK)

    def take(self, character: str) -> None:
        """Passes over a character that must come next."""
        if self.peek() != character:
            self.fail(f"{character!r} is needed here")
        self._at += 1
        self._byte += 1

    def value(self, key: str) -> Part:
        """Passes over the value that comes next."""
        self.peek()
        length = _CHUNK
        while True:
            try:
                value, end = self._json.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._held) - _NEAR
                if self._over or not cut or len(self._held) - self._at > _LONGEST:
                    self._byte += len(self._held[self._at : error.pos].encode())
                    self.fail(error.msg)
            except RecursionError:
                self.fail("it nests too deeply")
            else:
                # A number that ends with what is held may go on after it, be it with a point or an exponent.
                rest = self._held[end : end + _NEAR]
                if self._over or rest[:1] not in ("", *".eE") or len(rest) == _NEAR:
                    start, self._byte = self._byte, self._byte + len(self._held[self._at : end].encode())
                    self._at = end
                    return Part(key, value, start, self._byte)
            self._more(length)
            length *= 2  # so that a long part is not begun anew too often

    def fail(self, reason: str) -> NoReturn:
        """Says what is wrong where the text stands."""
        raise DataError(f"{self._path} is not valid JSON at byte {self._byte}: {reason}", _MEND)

    def _more(self, length: int) -> None:
        read = self._file.read(length)
        self._over = not read
        try:
            # What is behind is let go of.
            self._held, self._at = self._held[self._at :] + self._coming.decode(read, final=self._over), 0
        except UnicodeDecodeError as error:
            byte = self._file.tell() - len(read) + error.start
            raise DataError(f"{self._path} is not UTF-8 text near byte {byte}", _MEND) from None

    def _no_number(self, constant: str) -> NoReturn:
        self.fail(f"{constant} is no number that JSON knows")
