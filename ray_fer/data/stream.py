"""Unlabeled pictures for training as a Ray Data stream, for sets that do not fit a rank's memory.

A set that fits is better decoded once and kept there (`ray_fer.data.loading`). One that does not has to be read and
decoded anew in every pass, and the whole cluster can do that while the ranks compute: Ray Data's actors read and
decode, and ``streaming_split`` deals their blocks out to the ranks, no faster than these take them.

Rows come in an endless sequence of shuffles of the set, which is a function of the seed alone; an epoch of training
takes the next part of it. A block is what one rank sees in one step, and blocks are dealt out in turn. So the step and
the rank of every row follow from (seed, epoch), and a resumed run sees what an undisturbed one sees.

An execution of Ray Data takes seconds to start, because it starts processes. So one execution goes on over many epochs,
and reads on while the ranks validate. Its input, the URIs of its pictures, has to be complete when it begins.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from ray_fer import cluster
from ray_fer.compat.ray import ExecutionCallback, StreamingExecutor
from ray_fer.data.decode import Pixels
from ray_fer.data.loading import MAX_PICTURE_BYTES, Indices, decode_read, report_bad
from ray_fer.data.read import Item, read_objects
from ray_fer.data.sampling import PICTURES, shuffled

_THREADS = 4  # of a decoder
_AHEAD = 2  # batches that wait at a rank
_WAITING = 16  # blocks of a rank that may wait in the object store
_BLOCKS = 4096  # of one execution, if that is more than an epoch: some ten kB of URIs each
_TURN = 0.05  # seconds, at least, of the scheduler


class PictureStream:
    """Batches of pictures for every rank. All ranks have to make one, and iterate over the same epochs to their ends.

    Args:
        uris: N pictures, the same on every rank; only rank 0 reads them.
        image_size: side S.
        batch: B, rows of a rank in a step.
        steps: of an epoch.
        epochs: of the run.
        rank: of this process.
        ranks: how many take part.
        broadcast: gives rank 0's bytes to every rank.
        seed: same seed, same rows.
        decoders: processes that read and decode; None: as many as the cluster has CPUs.

    Attributes:
        bad: the unreadable rows that this rank has seen.
    """

    def __init__(
        self,
        uris: Sequence[str],
        image_size: int,
        *,
        batch: int,
        steps: int,
        epochs: int,
        rank: int,
        ranks: int,
        broadcast: Callable[[bytes], bytes],
        seed: int = 0,
        decoders: int | None = None,
    ) -> None:
        self.uris, self.image_size, self.batch, self.steps, self.epochs = uris, image_size, batch, steps, epochs
        self.rank, self.ranks, self.broadcast, self.seed, self.decoders = rank, ranks, broadcast, seed, decoders
        self.bad: set[int] = set()
        self._drawn = 0
        self._batches: Iterator[Any] = iter(())
        self._goes_on = range(0)  # epochs that are still to come from there
        self._open = False  # whether an epoch was begun and not iterated to its end

    def epoch(self, epoch: int) -> Iterator[tuple[Indices, Pixels, NDArray[np.bool_]]]:
        """This rank's batch of every step.

        Yields:
            rows int64 (B,), pixels uint8 (B, S, S, 3), zero where unreadable, and ok bool (B,).

        Raises:
            UserError: once more than 5 % of this rank's part have turned out to be unreadable.
        """
        if self._open or epoch not in self._goes_on[:1]:
            self._goes_on = range(epoch, min(self.epochs, epoch + max(1, _BLOCKS // (self.steps * self.ranks))))
            # Ray's own pickle, which knows the handle of the actor that deals blocks out.
            shared = self.broadcast(ray.cloudpickle.dumps(self._split(self._goes_on)) if self.rank == 0 else b"")
            mine = ray.cloudpickle.loads(shared)[self.rank]
            self._batches = iter(
                mine.iter_batches(batch_size=self.batch, batch_format="numpy", prefetch_batches=_AHEAD)
            )
        self._goes_on, self._open = self._goes_on[1:], True
        for found in itertools.islice(self._batches, self.steps):
            shape = (len(found["row"]), self.image_size, self.image_size, 3)
            pixels = np.stack([np.frombuffer(one, np.uint8) for one in found["pixels"]]).reshape(shape)
            self.note(found["row"].tolist(), found["problem"].tolist())
            yield found["row"], pixels, found["problem"] == ""
        self._open = False
        if not self._goes_on:
            next(self._batches, None)  # nothing: it tells the execution to end

    def note(self, rows: Sequence[int], problems: Sequence[str]) -> None:
        """Counts the unreadable among the ``rows`` of a batch; the problem of a readable one is ``""``.

        Raises:
            UserError: as `epoch`.
        """
        self._drawn += len(rows)
        # One pass of a rank is its part of the set; in the end it has seen all of it.
        seen = min(max(self._drawn, len(self.uris) // self.ranks), len(self.uris))
        for row, problem in zip(rows, problems, strict=True):
            if not problem or row in self.bad:
                continue
            self.bad.add(row)
            report_bad("unlabeled", self.uris[row], problem, len(self.bad), seen)

    def _split(self, epochs: range) -> list[Any]:
        cluster.prepare_data()
        count = self.steps * self.ranks * self.batch
        order = shuffled(len(self.uris), epochs.start * count, len(epochs) * count, self.seed, PICTURES)
        blocks = [
            pa.table({"row": rows, "uri": [self.uris[row] for row in rows]}) for rows in order.reshape(-1, self.batch)
        ]
        decoders = self.decoders or max(1, int(ray.cluster_resources().get("CPU", 1)))
        # No CPU is requested: the ranks may hold them all, and would then wait without end. `from_arrow` is
        # no option, because it looks at every block in a task of one CPU. Nor are tasks: Ray ends a process that has
        # idled for a second, and starting one for every block takes twenty times as long as decoding it.
        decoded = ray.data.from_blocks(blocks).map_batches(
            Decoder,
            fn_constructor_args=(self.image_size,),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            compute=ray.data.ActorPoolStrategy(size=decoders),
        )
        decoded.context.custom_execution_callback_classes.append(Turns)
        options = decoded.context.execution_options
        options.preserve_order = True
        # Else it would go on until half of the object store is full, and take the cores from the ranks meanwhile.
        there = (_WAITING * self.ranks + 2 * decoders) * self.batch * self.image_size**2 * 3
        options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=there)
        split: list[Any] = decoded.streaming_split(self.ranks, equal=True)
        return split


class Turns(ExecutionCallback):
    """Makes Ray Data's scheduler wait between its turns: else it takes a core while no task runs for it to wait for."""

    def __init__(self) -> None:
        self.next = 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Waits until the turn that has ended is `_TURN` seconds old."""
        time.sleep(max(0.0, self.next - time.monotonic()))
        self.next = time.monotonic() + _TURN


class Decoder:
    """Reads and decodes the pictures of a block, in an actor of Ray Data.

    Args:
        image_size: side S.
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def __call__(self, block: pa.Table) -> pa.Table:
        """Turns ``row`` and ``uri`` into ``row``, ``pixels`` (S * S * 3 bytes) and ``problem``, empty for none."""
        size = self.image_size
        pixels = np.zeros((len(block), size, size, 3), np.uint8)
        reads = read_objects((Item(uri, "", 0) for uri in block["uri"].to_pylist()), MAX_PICTURE_BYTES)
        with ThreadPoolExecutor(_THREADS) as pool:
            problems = [problem or "" for problem in pool.map(decode_read, reads, pixels)]
        flat = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(size * size * 3), len(pixels), [None, pa.py_buffer(pixels)]
        )
        return pa.table({"row": block["row"], "pixels": flat, "problem": pa.array(problems, pa.string())})
