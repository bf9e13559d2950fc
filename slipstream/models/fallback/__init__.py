# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Models without a family: transformers' own forward over the paged KV cache.

The library's models call their attention through a table of functions by name. An entry of ours in
it makes a forward of one flat row of tokens attend to paged sequences; everything else, from the
embedding to the scaling of logits, is the library's code. A probe at load learns what each layer
asks of attention, and a self-test compares the result with the library's own.
"""
