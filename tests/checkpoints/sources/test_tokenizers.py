from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from salmacli.checkpoints.sources.tokenizers import (
    add_sa2va_tokens,
    check_vocabulary,
    for_older_transformers,
    open_tokenizer,
    tokenizer_files,
)
from salmacli.errors import CheckpointError
from salmacli.models.tokenizer import SEGMENTATION_TOKENS

PICTURES = ("<img>", "</img>", "<IMG_CONTEXT>")
TEXT = "<|im_start|>user\n<img><IMG_CONTEXT></img>\nPlease segment the cat.<|im_end|>\n"


def added(first: int, *tokens: str) -> dict[str, dict[str, Any]]:
    """``added_tokens_decoder`` as tokenizer_config.json has it."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(first + n): {"content": token, **flags} for n, token in enumerate(tokens)}


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """As InternVL2.5-1B publishes it: vocab.json and merges.txt, the added tokens in the config; and code."""
    folder = tmp_path / "qwen"
    folder.mkdir()
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([TEXT, "the cat the cat segment user"] * 3, trainer)
    inner.model.save(str(folder))
    size = inner.get_vocab_size()
    config = {
        "added_tokens_decoder": added(size, "<|endoftext|>", "<|im_start|>", "<|im_end|>", *PICTURES),
        "auto_map": {"AutoTokenizer": ["tokenization_strange.Strange", None]},
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenization_strange.py").write_text("raise SystemExit('ran')")
    return folder


@pytest.fixture
def internlm2(tmp_path: Path) -> Path:
    """As InternVL2.5-8B publishes it: tokenizer.model, two of its pieces renamed, tokens added behind."""
    library = pytest.importorskip("sentencepiece")
    folder = tmp_path / "internlm2"
    folder.mkdir()
    (folder / "texts").write_text("Please segment the cat.\nuser assistant\nSure, it is there.\n" * 3)
    library.SentencePieceTrainer.train(
        input=str(folder / "texts"), model_prefix=str(folder / "tokenizer"), vocab_size=300, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False, minloglevel=2,
        remove_extra_whitespaces=False, control_symbols=["[UNUSED_1]", "[UNUSED_2]"],
    )  # fmt: skip
    config = {
        "added_tokens_decoder": added(0, "<unk>", "<s>", "</s>", "<|im_end|>", "<|im_start|>") | added(300, *PICTURES),
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "tokenizer_class": "InternLM2Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def reopened(files: dict[str, bytes], folder: Path) -> Any:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return open_tokenizer(folder)


def test_qwens_two_files_make_a_fast_tokenizer(qwen: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(qwen)
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.convert_ids_to_tokens(ids[:2]) == ["<|im_start|>", "user"]
    files = tokenizer_files(tokenizer)
    assert "tokenizer.json" in files
    assert b"auto_map" not in files["tokenizer_config.json"]
    again = reopened(files, tmp_path / "again")
    assert again(TEXT)["input_ids"] == ids
    assert (again.eos_token, len(again)) == ("<|im_end|>", len(tokenizer))


def test_internlm2s_tokenizer_begins_with_its_first_token(internlm2: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(internlm2)
    assert (tokenizer.bos_token, tokenizer.eos_token, len(tokenizer)) == ("<s>", "</s>", 303)
    ids = tokenizer(TEXT)["input_ids"]
    assert ids[:2] == [1, 4]
    assert tokenizer.decode(ids[1:]) == TEXT
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids[1:]
    again = reopened(tokenizer_files(tokenizer), tmp_path / "again")
    assert again(TEXT)["input_ids"] == ids
    assert again.bos_token_id == 1


@pytest.mark.parametrize("kind", ["qwen", "internlm2"])
def test_sa2vas_tokens_come_last_and_once(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = open_tokenizer(request.getfixturevalue(kind))
    size = len(tokenizer)
    assert add_sa2va_tokens(tokenizer) == list(SEGMENTATION_TOKENS)
    assert tokenizer.convert_tokens_to_ids(list(SEGMENTATION_TOKENS)) == list(range(size, size + 5))
    assert add_sa2va_tokens(tokenizer) == []
    (*_, seg, dot) = tokenizer("Sure, [SEG].", add_special_tokens=False)["input_ids"]
    assert seg == size and tokenizer.decode([dot]) == "."


def test_older_versions_of_transformers_read_the_configuration(qwen: Path, tmp_path: Path) -> None:
    """Version 4 knows no class TokenizersBackend, and takes no list of extra special tokens."""
    tokenizer = open_tokenizer(qwen)
    add_sa2va_tokens(tokenizer)
    files = for_older_transformers(tokenizer_files(tokenizer))
    config = json.loads(files["tokenizer_config.json"])
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local", "local_files_only", "extra_special_tokens"} & set(config)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    again, text = open_tokenizer(tmp_path), f"a cat {SEGMENTATION_TOKENS[0]}."
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.all_special_tokens == tokenizer.all_special_tokens


def test_every_token_needs_a_row(qwen: Path) -> None:
    tokenizer = open_tokenizer(qwen)
    check_vocabulary(tokenizer, len(tokenizer), "it")
    check_vocabulary(tokenizer, 10 * len(tokenizer), "it")  # padded embeddings are usual
    with pytest.raises(CheckpointError, match="'<IMG_CONTEXT>' has number"):
        check_vocabulary(tokenizer, len(tokenizer) - 1, "it")


def test_a_token_with_another_number_is_told(qwen: Path) -> None:
    path = qwen / "tokenizer_config.json"
    config = json.loads(path.read_text())
    numbers = list(config["added_tokens_decoder"])
    config["added_tokens_decoder"] |= added(int(numbers[-1]) + 9, "<far>")
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'<far>' is not number"):
        open_tokenizer(qwen)


def test_added_tokens_of_an_older_file(internlm2: Path) -> None:
    path = internlm2 / "tokenizer_config.json"
    config = json.loads(path.read_text())
    old = {entry["content"]: int(n) for n, entry in config.pop("added_tokens_decoder").items() if int(n) > 2}
    path.write_text(json.dumps(config))
    (internlm2 / "added_tokens.json").write_text(json.dumps(old))
    assert open_tokenizer(internlm2)(TEXT)["input_ids"][:2] == [1, 4]
    (internlm2 / "added_tokens.json").write_text(json.dumps({**old, "<far>": 400}))
    with pytest.raises(CheckpointError, match="have gaps"):
        open_tokenizer(internlm2)


def test_a_missing_or_broken_tokenizer_is_told(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        open_tokenizer(tmp_path / "none")
    (qwen / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_tokenizer(qwen)
    (qwen / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"one": {}}}')
    with pytest.raises(CheckpointError, match="list of added tokens is broken"):
        open_tokenizer(qwen)
    (qwen / "tokenizer_config.json").write_text("[1")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_tokenizer(qwen)
