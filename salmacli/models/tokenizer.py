"""A tokenizer for models that have no pretrained one: byte-level BPE with the real special tokens."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from salmacli.data.conversation import INTERNVL, TURN_END, TURN_START, ChatFormat
from salmacli.data.templates import ANSWERS, SEG, questions

PAD = "<|endoftext|>"
# [SEG] and the tokens that the predecessor trained beside it, in its order.
SEGMENTATION_TOKENS = (SEG, "<p>", "</p>", "<vp>", "</vp>")


def special_tokens(chat: ChatFormat) -> tuple[str, ...]:
    """All special tokens of a fresh tokenizer."""
    pictures = (chat.image_start, chat.image_end, chat.image_context)
    return (PAD, TURN_START, TURN_END, *pictures, *SEGMENTATION_TOKENS)


def build_tokenizer(
    expressions: Iterable[str], vocabulary: int, chat: ChatFormat = INTERNVL
) -> PreTrainedTokenizerFast:
    """Learn a tokenizer from the question templates filled with `expressions`.

    All 256 bytes are in the vocabulary, so that any sentence can be read; frequent words become single tokens.

    Args:
        expressions: the training expressions. Order does not matter: the result depends only on the set.
        vocabulary: number of tokens at most, special tokens included.
        chat: of the model.
    """
    special = special_tokens(chat)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = [
        question.replace("{expression}", text) for text in sorted(set(expressions)) for question in questions(text)
    ]
    turns = [f"{TURN_START}user\n", f"{TURN_END}\n{TURN_START}assistant\n"]
    tokenizer.train_from_iterator([*corpus, *ANSWERS, *turns], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        extra_special_tokens=[token for token in special if token not in (PAD, TURN_END)],
    )
