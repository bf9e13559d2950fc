# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The demo model's tokenizer: BPE over words with byte fallback, single digits and a chat template.

Normalizer and decoder are those of Llama 2 (a space is U+2581, a word carries the space before it,
unknown characters become byte tokens), so that detokenizers meet the common case.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from slipstream.demo.corpus import ASSISTANT, BOS, EOS, SYSTEM, USER

UNK, PAD = "<unk>", "<pad>"
SPECIAL_TOKENS = (UNK, BOS, EOS, PAD, SYSTEM, USER, ASSISTANT)  # in the order of their ids, from 0
_BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_SPACE = "\u2581"

# A word or a run of punctuation, with the space before it; a single digit; a line feed; a space.
_PIECES = rf"{_SPACE}?\p{{L}}+|\p{{N}}|\n|{_SPACE}?[^\p{{L}}\p{{N}}{_SPACE}\n]+|{_SPACE}"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Unknown role ' + message['role'] + ': use system, user or assistant.') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries: specials, 256 bytes, characters, merges."""
    learner = Tokenizer(BPE())
    _add_text_rules(learner)
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(_BYTE_TOKENS),
        initial_alphabet=[_SPACE, "\n", *map(chr, range(0x21, 0x7F))],
        show_progress=False,
    )
    learner.train_from_iterator((_without_markers(text) for text in texts), trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    merges = [tuple(pair) for pair in learned["merges"]]
    return _assemble([*SPECIAL_TOKENS, *_BYTE_TOKENS, *pieces], merges)


def _assemble(pieces: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        BPE(vocab=vocab, merges=merges, unk_token=UNK, fuse_unk=True, byte_fallback=True)
    )
    _add_text_rules(tokenizer)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, vocab[BOS])],
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def _add_text_rules(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")


def _without_markers(text: str) -> str:
    """`text` with spaces for special tokens, since merges must not learn from them."""
    for token in SPECIAL_TOKENS:
        text = text.replace(token, " ")
    return text


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which holds the chat template."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "extra_special_tokens": [SYSTEM, USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": max_tokens,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
