# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Tokenizers, as far as the C++ side needs them."""

from slipstream.tokenization.decoders import TokenizationError, UnsupportedDecoderError
from slipstream.tokenization.token_table import UnsupportedTokenizerError, export_token_table

__all__ = [
    "TokenizationError",
    "UnsupportedDecoderError",
    "UnsupportedTokenizerError",
    "export_token_table",
]
