# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m slipstream.tokenizer --fd N``: started by the server, not by people."""

from __future__ import annotations

import argparse
import sys

from slipstream.link import Link, end_with_parent
from slipstream.tokenizer.process import serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="slipstream.tokenizer", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    arguments = parser.parse_args()
    end_with_parent()
    return serve(Link.from_fd(arguments.fd))


if __name__ == "__main__":
    sys.exit(main())
