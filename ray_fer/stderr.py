"""Removal of lines that a library writes to standard error, if neither logging nor its own settings suppress them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def without_lines(part: bytes) -> Iterator[None]:
    """Drops the lines that contain ``part`` from what this process writes to standard error while the block runs.

    All other lines are forwarded at once. Processes that the block starts and that outlive it keep writing through the
    same pipe, and their lines are forwarded and dropped in the same way.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)

    def forward() -> None:
        with open(reader, "rb", buffering=0) as pipe, open(kept, "wb", buffering=0) as target:
            rest = b""
            while piece := pipe.read(1 << 16):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if part not in line:
                        target.write(line + b"\n")
            target.write(rest)

    thread = threading.Thread(target=forward, name="stderr", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        # The thread closes the pipe when all processes that the block started have ended, which may be much later.
        thread.join(0.2)
