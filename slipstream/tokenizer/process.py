# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The conversation of a tokenizer process: CONFIG, HELLO, then REPLY for every REQUEST."""

from __future__ import annotations

import difflib
import logging
import os
import struct
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slipstream.link import VERSION, FrameType, Link, LinkError
from slipstream.tokenizer.encoder import PromptEncoder
from slipstream.tokenizer.request import RequestError, TokenizeRequest

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """The CONFIG frame."""

    version: str
    frame_version: int
    tokenizer: str  # a directory or a hub id
    trust_remote_code: bool = False
    revision: str | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> TokenizerConfig:
        """Raises ValueError naming the field."""
        known = list(cls.__dataclass_fields__)
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"tokenizer configuration: unknown key {key!r}, nearest {near!r}")
        if values.get("frame_version") != VERSION:
            raise ValueError(
                f"tokenizer configuration: frame_version is {values.get('frame_version')!r}, "
                f"this side speaks {VERSION}"
            )
        if not isinstance(values.get("tokenizer"), str) or not values["tokenizer"]:
            raise ValueError("tokenizer configuration: tokenizer must name a directory or a hub id")
        return cls(**{"version": "", **values})


def serve(link: Link) -> int:
    """Serves until SHUTDOWN or end of file; returns the exit status."""
    try:
        first = link.receive()
        if first is None:
            return 0
        if first[0] is not FrameType.CONFIG:
            raise LinkError(f"expected CONFIG, got {first[0].name}")
        tokenizer = _load(TokenizerConfig.parse(first[1]))
        encoder = PromptEncoder(tokenizer)
        link.send(FrameType.HELLO, _hello(tokenizer))
        while (frame := link.receive()) is not None and frame[0] is not FrameType.SHUTDOWN:
            if frame[0] is not FrameType.REQUEST:
                raise LinkError(f"expected REQUEST, got {frame[0].name}")
            link.send(FrameType.REPLY, answer(encoder, frame[1]))
    except ConnectionError:
        return 0  # the server is gone
    except Exception as error:
        # The server shows the message to its user; the traceback goes to its log.
        message = str(error) or type(error).__name__
        link.send(FrameType.ERROR, {"message": message, "traceback": traceback.format_exc()})
        return 1
    return 0


def answer(encoder: PromptEncoder, values: Mapping[str, Any]) -> dict[str, Any]:
    """The REPLY to a REQUEST."""
    number = values.get("id")
    try:
        request = TokenizeRequest.parse(values)
        ids = encoder.encode(request)
        words = {
            name: [_pack(encoder.encode_word(word)) for word in entries]
            for name, entries in request.words.items()
        }
    except RequestError as error:
        return {"id": number, "error": {"code": error.code, "message": str(error)}}
    except Exception as error:
        _log.exception("tokenizing failed")
        message = f"tokenizing failed: {type(error).__name__}: {error}"
        return {"id": number, "error": {"code": "internal", "message": message}}
    return {"id": number, "ids": _pack(ids), "words": words}


def _pack(ids: list[int]) -> bytes:
    return struct.pack(f"<{len(ids)}i", *ids)


def _load(config: TokenizerConfig) -> Any:
    if not config.trust_remote_code and "torch" not in sys.modules:
        # transformers imports torch wherever it finds it, which triples our start-up time and
        # memory. A module that is None counts as not installed.
        sys.modules["torch"] = None  # type: ignore[assignment]
        # It would advise everyone to install torch.
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    from transformers import AutoTokenizer

    revision = {} if config.revision is None else {"revision": config.revision}
    try:
        return AutoTokenizer.from_pretrained(
            config.tokenizer, trust_remote_code=config.trust_remote_code, **revision
        )
    except Exception as error:  # transformers raises many kinds, and few name what they tried
        raise RuntimeError(f"cannot load the tokenizer {config.tokenizer!r}: {error}") from error


def _hello(tokenizer: Any) -> dict[str, Any]:
    def id_of(name: str) -> int:
        token_id = getattr(tokenizer, name)
        return -1 if token_id is None else int(token_id)

    eos_id, pad_id = id_of("eos_token_id"), id_of("pad_token_id")
    return {
        "vocab_size": len(tokenizer),
        "eos_id": eos_id,
        "pad_id": pad_id if pad_id >= 0 else eos_id,
        "bos_id": id_of("bos_token_id"),
        "token_table": _token_table(tokenizer),
        "has_chat_template": bool(tokenizer.chat_template),
        "pid": os.getpid(),
    }


def _token_table(tokenizer: Any) -> bytes:
    from slipstream.tokenization import TokenizationError, export_token_table

    try:
        return export_token_table(tokenizer)
    except TokenizationError as error:
        _log.warning("text output is not available: %s", error)
        return b""
