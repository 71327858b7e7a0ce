"""Tokenizer files of published models → one fast tokenizer; code that lies beside them is never run."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from salmacli.checkpoints.sources.sentencepiece_model import SentencePieceModel
from salmacli.config.files import read_json
from salmacli.errors import CheckpointError, DataError
from salmacli.models.tokenizer import SEGMENTATION_TOKENS

FAST, CONFIG, ADDED, SPECIAL = "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
VOCABULARY, MERGES, SENTENCEPIECE = "vocab.json", "merges.txt", "tokenizer.model"
FILES = (FAST, CONFIG, ADDED, SPECIAL, VOCABULARY, MERGES, SENTENCEPIECE, "chat_template.jinja", "chat_template.json")


def files_of(folder: Path) -> dict[str, bytes]:
    """What lies in a folder of a tokenizer: file name → bytes. Other files there are not its."""
    return {name: (folder / name).read_bytes() for name in sorted(FILES) if (folder / name).is_file()}


def open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a published model.

    Args:
        folder: Holds ``tokenizer.json``, or ``vocab.json`` and ``merges.txt`` (Qwen), or ``tokenizer.model``
            (InternLM2), and what belongs to it.

    Raises:
        CheckpointError: It holds none of these, one is broken, or the tokens do not have the ids that they should.
    """
    try:
        config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        added = _added_tokens(folder, config)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{folder}: the list of added tokens is broken ({error})", "download it again") from error
    if (folder / FAST).is_file():
        tokenizer = _load(PreTrainedTokenizerFast, folder)
    elif (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        tokenizer = _load(Qwen2Tokenizer, folder)
    elif (folder / SENTENCEPIECE).is_file():
        tokenizer = _internlm2(folder / SENTENCEPIECE, config, added)
    else:
        names = f"{FAST}, {VOCABULARY} with {MERGES}, or {SENTENCEPIECE}"
        raise CheckpointError(f"{folder} holds no tokenizer ({names})", "download the whole model")
    for number, token in added.items():
        if tokenizer.convert_tokens_to_ids(token.content) != number:
            raise CheckpointError(
                f"{folder}: the tokenizer's {token.content!r} is not number {number}", "download it again"
            )
    return tokenizer


def add_sa2va_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Add Sa2VA's special tokens at the end, unless they are there; returns those that were not."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in SEGMENTATION_TOKENS if token not in vocabulary]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    return missing


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, rows: int, where: str) -> None:
    """See that every token has its row in the embedding.

    Raises:
        CheckpointError: Some have none.
    """
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        raise CheckpointError(
            f"{where}: the tokenizer's {beyond[0][1]!r} has number {beyond[0][0]}, but the embedding {rows} rows",
            "tokenizer and weights are not of one model",
        )


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """File name → bytes, as ``save_pretrained`` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir()) if file.is_file()}


def for_older_transformers(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same files with a configuration that transformers 4 reads as well: version 5 has a class and keys of its own.

    Which tokens are special stands in ``tokenizer.json``, too.
    """
    config = json.loads(files[CONFIG])
    extra = config.pop("extra_special_tokens", [])
    kept = {key: value for key, value in config.items() if key not in _OF_VERSION_5}
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra, list) and extra:
        kept.setdefault("additional_special_tokens", extra)
    return {**files, CONFIG: json.dumps(kept, indent=2, ensure_ascii=False).encode()}


_OF_VERSION_5 = ("backend", "is_local", "local_files_only")


def _load(kind: type[PreTrainedTokenizerFast], folder: Path) -> PreTrainedTokenizerFast:
    """Read with a class that we name, from a folder in which nothing but data lies."""
    with tempfile.TemporaryDirectory() as data:
        for name in FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, Path(data) / name)
        try:
            tokenizer = kind.from_pretrained(data, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            # tokenizers raises bare Exceptions for broken files, transformers whatever the fault leads to.
            raise CheckpointError(f"{folder}: its tokenizer cannot be read ({error})", "download it again") from error
    tokenizer.init_kwargs.pop("auto_map", None)
    return tokenizer


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Id → token of those that were added to a vocabulary or renamed in it."""
    found = {
        int(number): AddedToken(**{key: value for key, value in token.items() if key != "__type"})
        for number, token in (config.get("added_tokens_decoder") or {}).items()
    }
    if (folder / ADDED).is_file():
        for token, number in read_json(folder / ADDED).items():
            found.setdefault(int(number), AddedToken(token, special=True, normalized=False))
    return dict(sorted(found.items()))


def _internlm2(path: Path, config: Mapping[str, Any], added: Mapping[int, AddedToken]) -> PreTrainedTokenizerFast:
    model = SentencePieceModel.read(path)
    beyond = [number for number in added if number >= len(model.pieces)]
    if beyond != list(range(len(model.pieces), len(model.pieces) + len(beyond))):
        raise CheckpointError(f"{path.parent}: the added tokens' numbers have gaps", "download it again")
    inner = model.tokenizer({number: token.content for number, token in added.items()}, str(path))
    for token in added.values():
        (inner.add_special_tokens if token.special else inner.add_tokens)([token])
    named = {key: _content(config.get(key), default) for key, default in _INTERNLM2_TOKENS.items()}
    if config.get("add_bos_token", True):
        begin = named["bos_token"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, inner.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **named)


_INTERNLM2_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}


def _content(token: Any, default: str) -> str:
    """A special token, which a config gives as a text or as a mapping."""
    return str((token.get("content") if isinstance(token, Mapping) else token) or default)
