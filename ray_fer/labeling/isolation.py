"""Decoding in a process of its own, for units that killed the worker that had them: only the culprit is lost.

The child hands over every object as soon as it is decoded. Where it dies, the next object is what killed it: that one
becomes a row of status ``crashed``, and another child goes on behind it.
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
    """Reads and decodes ``keys`` as one batch, like `unit.decode_items`, whatever an object does to the process.

    Args:
        keys: as `unit.decode_items` takes them.
        settings: of `unit.decode_items`, without the batch size.

    Raises:
        RuntimeError: when the child fails by itself.
    """
    batches: list[Decoded] = []
    done = 0
    while done < keys.num_rows:
        found, _ = _attempt(keys.slice(done), settings)
        batches += found
        done += len(found)
        if done < keys.num_rows:
            # It may have been killed for want of memory: the suspect gets a process all to itself.
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
    # Not multiprocessing: it would start what Ray's worker was started with.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with shielded_children():  # else it is the interrupted child's object that would count as crashed
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
    """The child: a pickled (keys, settings) on stdin, a pickled `Decoded` per object on stdout."""
    results: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not lie among the results
    keys, settings = pickle.load(sys.stdin.buffer)
    for batch in decode_items(keys, batch_size=1, **settings):
        pickle.dump(batch, results)
        results.flush()


if __name__ == "__main__":
    main()
