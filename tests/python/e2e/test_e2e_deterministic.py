# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""With ``deterministic`` a client of tritonserver gets the same bits in any company."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e_client import ask, joined_ids, prompt
from e2e_recipes import DETERMINISTIC
from e2e_server import ServerPool, tokenizer
from e2e_streams import TEXTS, log_probs

COUNT = 24


@pytest.mark.slow
def test_the_same_bits_alone_and_together(servers: ServerPool) -> None:
    """24 requests of 3 to 200 tokens in bfloat16, greedy and drawn, one by one and then at once."""
    ids = tokenizer()(" ".join(TEXTS * 6))["input_ids"]
    requests = [
        prompt(
            ids[i : i + 3 + i * i % 200],
            32,
            min_tokens=32,
            streaming=True,
            return_log_probs=True,
            temperature=[0.0, 0.9][i % 2],
            seed=i,
        )
        for i in range(COUNT)
    ]
    with servers.own(DETERMINISTIC) as server:

        def answer(number: int) -> tuple[list[int], list[float]]:
            replies = ask(server.grpc, "llm", requests[number])
            return joined_ids(replies), log_probs(replies).tolist()

        alone = [answer(i) for i in range(COUNT)]
        assert {len(tokens) for tokens, _ in alone} == {32}
        assert {len(values) for _, values in alone} == {32}
        with ThreadPoolExecutor(COUNT) as threads:
            for _ in range(3):
                assert list(threads.map(answer, reversed(range(COUNT)))) == alone[::-1]
