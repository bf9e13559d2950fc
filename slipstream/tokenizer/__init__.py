# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer process: Hugging Face tokenizers and chat templates behind a socket."""
