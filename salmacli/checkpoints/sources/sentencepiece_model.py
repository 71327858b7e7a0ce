"""A SentencePiece model file → a fast tokenizer, without the SentencePiece library.

The file is one Protocol Buffers message; of its dozens of fields six matter here. Reading them takes fewer lines than
the two libraries that do it would take dependencies.

Source: sentencepiece_model.proto and https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from salmacli.errors import CheckpointError

_SPACE = "▁"
_BPE = 2


class Kind(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; higher scores are merged first."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class SentencePieceModel:
    """What a model file says.

    Attributes:
        pieces: By id.
        kind: 2 is byte-pair encoding.
        charsmap: Normalisation rules, precompiled; empty for none.
        dummy_prefix: Put a blank before every text.
        remove_extra_spaces: Trim a text and take runs of blanks for one.
    """

    pieces: tuple[Piece, ...]
    kind: int
    charsmap: bytes
    dummy_prefix: bool
    remove_extra_spaces: bool

    @classmethod
    def read(cls, path: Path) -> SentencePieceModel:
        """Read a ``tokenizer.model``.

        Raises:
            CheckpointError: It is missing, cut off or of another kind.
        """
        try:
            fields = list(_fields(path.read_bytes()))
            pieces = tuple(_piece(value) for number, value in fields if number == 1)  # type: ignore[arg-type]
            trainer = dict(_fields(next((value for number, value in fields if number == 2), b"")))  # type: ignore[arg-type]
            normalizer = dict(_fields(next((value for number, value in fields if number == 3), b"")))  # type: ignore[arg-type]
            if not pieces:
                raise ValueError("no pieces")
            return cls(
                pieces=pieces,
                kind=int(trainer.get(3, 1)),
                charsmap=bytes(normalizer.get(2, b"")),  # type: ignore[arg-type]
                dummy_prefix=bool(normalizer.get(3, 1)),
                remove_extra_spaces=bool(normalizer.get(4, 1)),
            )
        except (OSError, ValueError, TypeError, IndexError, struct.error) as error:
            raise CheckpointError(f"{path} is no SentencePiece model ({error})", "download it again") from error

    def tokenizer(self, renamed: Mapping[int, str], where: str) -> Tokenizer:
        """A fast tokenizer that splits texts as SentencePiece does; special tokens are the caller's affair.

        Args:
            renamed: Id → text, for pieces that a model has given another text.
            where: The file, for messages.

        Raises:
            CheckpointError: It is no byte-pair encoding, or of a kind that fast tokenizers cannot follow.
        """
        own = [piece.text for piece in self.pieces if piece.kind is Kind.USER_DEFINED]
        if self.kind != _BPE or (own and self.dummy_prefix):
            raise CheckpointError(f"{where} is not of the kind that InternLM2 has", "take the model's tokenizer.json")
        texts = [renamed.get(number, piece.text) for number, piece in enumerate(self.pieces)]
        unknown = next((texts[n] for n, piece in enumerate(self.pieces) if piece.kind is Kind.UNKNOWN), None)
        vocabulary = {text: number for number, text in enumerate(texts)}
        bpe = models.BPE(vocabulary, self._merges(renamed), unk_token=unknown, fuse_unk=True, byte_fallback=True)
        tokenizer = Tokenizer(bpe)
        tokenizer.normalizer = normalizers.Sequence(self._normalizers())
        strip = [decoders.Strip(" ", 1, 0)] if self.dummy_prefix else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in own])
        return tokenizer

    def _merges(self, renamed: Mapping[int, str]) -> list[tuple[str, str]]:
        """Every way to make a piece of two, the best pieces first."""
        normal = (n for n, piece in enumerate(self.pieces) if piece.kind is Kind.NORMAL and n not in renamed)
        numbers = {self.pieces[n].text: n for n in normal}
        ways = [
            (-self.pieces[number].score, numbers[text[:cut]], numbers[text[cut:]], text[:cut], text[cut:])
            for text, number in numbers.items()
            for cut in range(1, len(text))
            if text[:cut] in numbers and text[cut:] in numbers
        ]
        return [(left, right) for *_, left, right in sorted(ways)]

    def _normalizers(self) -> list[normalizers.Normalizer]:
        found: list[normalizers.Normalizer] = []
        if self.charsmap:
            found.append(normalizers.Precompiled(self.charsmap))
        if self.remove_extra_spaces:
            found += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        if self.dummy_prefix:
            found.append(normalizers.Prepend(_SPACE))
        return [*found, normalizers.Replace(" ", _SPACE)]


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    (score,) = struct.unpack("<f", bytes(fields.get(2, b"\0" * 4)))  # type: ignore[arg-type]
    return Piece(bytes(fields[1]).decode("utf-8"), score, Kind(fields.get(3, 1)))  # type: ignore[arg-type]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: an int, or the bytes of a text, a float or a message."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if place + size > len(message):
            raise ValueError("cut off")
        yield tag >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("a number without end")
