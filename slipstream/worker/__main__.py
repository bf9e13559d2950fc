# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m slipstream.worker --fd N``: a worker at the end of an inherited socket."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys

from slipstream.worker.channel import Channel
from slipstream.worker.loop import serve

_PR_SET_PDEATHSIG = 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m slipstream.worker")
    parser.add_argument("--fd", type=int, required=True, help="connected stream socket")
    arguments = parser.parse_args()
    # Even a worker that is busy loading ends with its parent; an idle one sees end of file.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # These reach the whole process group: the executor decides when its worker ends, and may want
    # to finish what is running first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # OpenMP reads this when torch is imported. Its threads spin at barriers by default, which on
    # cores shared with the server costs a scheduling slice a barrier: steps become 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    channel = Channel.from_fd(arguments.fd)
    try:
        return serve(channel)
    finally:
        channel.close()


if __name__ == "__main__":
    sys.exit(main())
