"""Decoding in a child process, for units that have killed the worker that had them.

The child sends every object as soon as it is decoded. If the child dies, the next object is the one that has killed it.
Only that object is lost: it becomes a row with the status ``crashed``, and another child continues after it.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from ray_fer.interruption import shielded_children
from ray_fer.labeling.table import CRASHED
from ray_fer.labeling.unit import Decoded, Row, attempts_of, decode_items, joined, teachers_of


def decode_isolated(keys: pa.Table, **settings: Any) -> Decoded:
    """Reads and decodes ``keys`` as one batch, even if an object kills the process that decodes it.

    Args:
        keys: Keys for `unit.decode_items`.
        settings: Keyword arguments of `unit.decode_items` except ``batch_size``.

    Raises:
        RuntimeError: If the child fails without being killed.
    """
    batches: list[Decoded] = []
    done = 0
    while done < keys.num_rows:
        found, _ = _attempt(keys.slice(done), settings)
        batches += found
        done += len(found)
        if done < keys.num_rows:
            # The child may have been killed for lack of memory, so a process of its own decodes the suspect again.
            suspect = keys.slice(done, 1)
            found, returncode = _attempt(suspect, settings)
            batches += found or [_crashed(suspect, returncode, len(settings["image_sizes"]))]
            done += 1
    return joined(batches, settings["image_sizes"])


def _attempt(keys: pa.Table, settings: dict[str, Any]) -> tuple[list[Decoded], int]:
    with _child(keys, settings) as child:
        try:
            found = list(_results(child))
        except BaseException:
            child.kill()
            raise
    if child.returncode > 0:
        raise RuntimeError(f"isolated decoding failed with exit status {child.returncode}")
    return found, child.returncode


def _child(keys: pa.Table, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    # multiprocessing would run the main module of Ray's worker again.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with shielded_children():  # or the object of an interrupted child would count as crashed
        child = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
    assert child.stdin
    with child.stdin as pipe:
        pickle.dump((keys.combine_chunks(), settings), pipe)
    return child


def _results(child: subprocess.Popen[bytes]) -> Iterator[Decoded]:
    assert child.stdout
    while True:
        try:
            yield pickle.load(child.stdout)
        except (EOFError, pickle.UnpicklingError):  # it ended, or it was killed while it wrote
            return


def _crashed(key: pa.Table, returncode: int, teachers: int) -> Decoded:
    (known,) = key.select(["uri", "identity", "source"]).to_pylist()
    error = f"kills the process that decodes it (signal {-returncode})"
    (attempts,) = attempts_of(key, teachers)
    return Decoded([Row(**known, status=CRASHED, error=error, attempts=attempts)], teachers_of(key))


def main() -> None:
    """Runs in the child: reads a pickled (keys, settings) from stdin and writes a pickled `Decoded` for each object."""
    results: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of a library must not mix with the results
    keys, settings = pickle.load(sys.stdin.buffer)
    for batch in decode_items(keys, batch_size=1, **settings):
        pickle.dump(batch, results)
        results.flush()


if __name__ == "__main__":
    main()
