# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of six kinds, trained here on generated text, and that text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<|im_end|>"]
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FRAGMENTS = [
    "the", "quick", "brown", "story", "don't", "we've", "it's", "I'm", "do not", "n't", "' x '",
    "Hello", "WORLD", "naïve", "café", "Zürich", "e\u0301a\u0308o\u0302", "Z̷̡͎a̴l̶g̸o̵",
    "你好世界", "日本語テキスト", "한국어", "𠀀𠮷", "مرحبا بالعالم", "السَّلَامُ",
    "नमस्ते दुनिया", "क्षत्रिय", "ไทย",
    "👍", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👩🏽‍💻", "🇩🇪🇯🇵", "\u200d", "\ufe0f", "\ufffd", "\u00a0", "\ufeff",
    "def f(x):\n\treturn x ** 2", "{\"a\": [1, 2]}", "#include <x>\r\n", "x = y // 3;", "```py\n",
    ".", ",", "!", "?", " .", " ,", " '", "##", "▁", "<0x41>", "Ġ", "Ċ", "12345", "3.14", "\x00",
    "<s>", "</s>", "<|im_end|>", "<tool>", "added é",
]  # fmt: skip
_SPACES = ["", " ", " ", " ", "  ", "    ", "\n", "\n\n", "\t", " \n "]


def generate_text(rng: random.Random) -> str:
    """A string of 0..12 fragments with all sorts of white space around them."""
    parts = [rng.choice(_SPACES)]
    for _ in range(rng.randrange(13)):
        parts += [rng.choice(_FRAGMENTS), rng.choice(_SPACES)]
    return "".join(parts)


def _corpus() -> list[str]:
    rng = random.Random(1)
    # A third of the fragments stay unseen, so that fallbacks and unknown tokens occur.
    seen = set(rng.sample(_FRAGMENTS, 2 * len(_FRAGMENTS) // 3))
    texts = [generate_text(rng) for _ in range(1500)]
    return ["".join(c for c in text if c in "".join(seen) or c.isspace()) for text in texts]


def _finish(
    tokenizer: Tokenizer, *, cleanup: bool = False, insist: bool = False
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("added é")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=cleanup,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=insist,
    )


def sentencepiece_bpe(
    decoder: decoders.Decoder | None = None, *, cleanup: bool = False
) -> PreTrainedTokenizerFast:
    """As Llama 2: metaspace, byte fallback, one leading space stripped."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>"], limit_alphabet=80)
    tokenizer.train_from_iterator(_corpus(), trainer)
    spec = json.loads(tokenizer.to_str())
    vocab = spec["model"]["vocab"]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    spec["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.decoder = decoder or decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _finish(tokenizer, cleanup=cleanup, insist=cleanup)


def byte_level_bpe() -> PreTrainedTokenizerFast:
    """As GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer, cleanup=True)  # which transformers ignores for BPE


def tiktoken_style() -> PreTrainedTokenizerFast:
    """As Llama 3: a split expression of its own, whole words before merges."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer)


def unigram(
    decoder: decoders.Decoder | None = None, *, cleanup: bool = False
) -> PreTrainedTokenizerFast:
    """As T5: metaspace before every word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.decoder = decoder or decoders.Metaspace()
    return _finish(tokenizer, cleanup=cleanup)


def wordpiece(*, cleanup: bool = True) -> PreTrainedTokenizerFast:
    """As BERT: continuation prefix, clean-up per token and of the whole text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]"])
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    return _finish(tokenizer, cleanup=cleanup)


def prefix_unstable() -> PreTrainedTokenizerFast:
    """Every token is 1 to 4 bytes cut anywhere, and the text is cleaned up: see cut_anywhere()."""
    rng = random.Random(2)
    letters = {byte: char for char, byte in _alphabet().items()}
    pieces = dict.fromkeys(letters.values())
    blob = "".join(_FRAGMENTS * 4 + [" .", " n't", " 've ", "' "] * 20).encode()
    while len(pieces) < 1200:
        at, size = rng.randrange(len(blob)), rng.randrange(2, 5)
        pieces["".join(letters[byte] for byte in blob[at : at + size])] = None
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=letters[ord("?")]))
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer, cleanup=True)


def _alphabet() -> dict[str, int]:
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    text = "".join(map(chr, range(0x100))) + "".join(chr(lead << 6) for lead in range(32))
    alphabet = dict(zip("".join(p for p, _ in encode(text)), text.encode(), strict=True))
    # The rest are bytes that no character so far contains; both sides are in byte order.
    bytes_left = sorted(set(range(256)) - set(alphabet.values()))
    letters_left = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(alphabet))
    alphabet.update(zip(letters_left, bytes_left, strict=True))
    return alphabet


def cut_anywhere(tokenizer: PreTrainedTokenizerFast, text: str, rng: random.Random) -> list[int]:
    """Ids of a random cut of ``text`` into tokens of the prefix-unstable vocabulary."""
    letters = {byte: char for char, byte in _alphabet().items()}
    vocab = tokenizer.get_vocab()
    spelled = "".join(letters[byte] for byte in text.encode())
    ids, at = [], 0
    while at < len(spelled):
        sizes = [n for n in range(1, 5) if spelled[at : at + n] in vocab and at + n <= len(spelled)]
        size = rng.choice(sizes)
        ids.append(vocab[spelled[at : at + size]])
        at += size
    return ids


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "sentencepiece_bpe": sentencepiece_bpe,
    "byte_level_bpe": byte_level_bpe,
    "tiktoken_style": tiktoken_style,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "prefix_unstable": prefix_unstable,
}


@cache
def build(kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of that kind, built once."""
    return KINDS[kind]()
