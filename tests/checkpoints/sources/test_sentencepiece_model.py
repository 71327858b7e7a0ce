from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from salmacli.checkpoints.sources.sentencepiece_model import Kind, Piece, SentencePieceModel
from salmacli.errors import CheckpointError

TEXTS = [
    "Please segment the cat on the left.",
    "Where is the third red car? It is 12 m away, isn't it.",
    "the man who walks and the woman who is walking",
    "日本語のテキスト, кириллица and café",
]


def message(number: int, value: int | float | bytes) -> bytes:
    """One field of a Protocol Buffers message; numbers below 128."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def model_file(path: Path, pieces: list[Piece], **flags: int) -> Path:
    """A model file of byte-pair encoding as SentencePiece writes it."""
    entries = [message(1, p.text.encode()) + message(2, p.score) + message(3, int(p.kind)) for p in pieces]
    trainer = message(3, flags.get("kind", 2))
    normalizer = message(1, b"identity") + message(3, flags.get("dummy", 0)) + message(4, flags.get("strip", 0))
    path.write_bytes(b"".join(message(1, e) for e in entries) + message(2, trainer) + message(3, normalizer))
    return path


def pieces(*texts: str) -> list[Piece]:
    """Unknown, two control pieces, all bytes, and `texts`, of which earlier ones are merged first."""
    special = [Piece("<unk>", 0.0, Kind.UNKNOWN), Piece("<s>", 0.0, Kind.CONTROL), Piece("</s>", 0.0, Kind.CONTROL)]
    single = [Piece(f"<0x{byte:02X}>", 0.0, Kind.BYTE) for byte in range(256)]
    return [*special, *single, *(Piece(text, -float(n), Kind.NORMAL) for n, text in enumerate(texts))]


def test_reads_every_field(tmp_path: Path) -> None:
    wanted = pieces("ab", "▁a", "a", "b")
    model = SentencePieceModel.read(model_file(tmp_path / "m", wanted, dummy=1))
    assert model.pieces == tuple(wanted)
    assert (model.kind, model.charsmap, model.dummy_prefix, model.remove_extra_spaces) == (2, b"", True, False)


def test_better_pieces_are_merged_first_and_strange_characters_fall_to_bytes(tmp_path: Path) -> None:
    model = SentencePieceModel.read(model_file(tmp_path / "m", pieces("bc", "ab", "▁", "a", "b", "c", "abc")))
    tokenizer = model.tokenizer({}, "m")

    def split(text: str) -> list[str]:
        return tokenizer.encode(text, add_special_tokens=False).tokens

    assert split("abc") == ["abc"]  # bc first, then a with it
    assert split("ab c") == ["ab", "▁", "c"]
    assert split("é") == ["<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("ab é c").ids) == "ab é c"


def test_pieces_that_a_model_renames_keep_their_numbers(tmp_path: Path) -> None:
    wanted = [*pieces("a", "b"), Piece("[UNUSED_TOKEN_145]", 0.0, Kind.CONTROL)]
    number = len(wanted) - 1
    tokenizer = SentencePieceModel.read(model_file(tmp_path / "m", wanted)).tokenizer({number: "<|im_end|>"}, "m")
    assert tokenizer.token_to_id("<|im_end|>") == number
    assert tokenizer.token_to_id("[UNUSED_TOKEN_145]") is None


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    unigram = SentencePieceModel.read(model_file(tmp_path / "u", pieces("a"), kind=1))
    own = [*pieces("a"), Piece("<x>", 0.0, Kind.USER_DEFINED)]
    prefixed = SentencePieceModel.read(model_file(tmp_path / "p", own, dummy=1))
    for model in (unigram, prefixed):
        with pytest.raises(CheckpointError, match="not of the kind that InternLM2 has"):
            model.tokenizer({}, "it")


@pytest.mark.parametrize("cut", [1, 40, -3])
def test_a_broken_file_is_told(tmp_path: Path, cut: int) -> None:
    path = model_file(tmp_path / "m", pieces("a", "b"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="is no SentencePiece model"):
        SentencePieceModel.read(path)
    path.write_bytes(b"\xff" * 50)
    with pytest.raises(CheckpointError, match="is no SentencePiece model"):
        SentencePieceModel.read(path)


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity", "add_dummy_prefix": True, "remove_extra_whitespaces": False},
        {"normalization_rule_name": "nmt_nfkc", "add_dummy_prefix": True, "remove_extra_whitespaces": True},
    ],
)
def test_splits_and_joins_as_the_sentencepiece_library_does(tmp_path: Path, options: dict[str, object]) -> None:
    library = pytest.importorskip("sentencepiece")
    (tmp_path / "texts").write_text("\n".join(TEXTS), encoding="utf-8")
    library.SentencePieceTrainer.train(
        input=str(tmp_path / "texts"), model_prefix=str(tmp_path / "m"), vocab_size=330, model_type="bpe",
        byte_fallback=True, split_digits=True, character_coverage=0.98, minloglevel=2, **options,
    )  # fmt: skip
    theirs = library.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    ours = SentencePieceModel.read(tmp_path / "m.model").tokenizer({}, "m")
    draw = random.Random(0)
    words = [*" ".join(TEXTS).split(), "  ", "\n", "🐉", "é", "123", "▁"]
    made = ["".join(draw.choice([word, word + " "]) for word in draw.choices(words, k=6)) for _ in range(200)]
    for text in [*TEXTS, "", " ", *made]:
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False).ids == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text
