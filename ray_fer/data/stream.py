"""Unlabeled pictures for training as a Ray Data stream, for sets that do not fit a rank's memory.

What fits is better kept there, decoded once (`ray_fer.data.loading`). What does not has to be read and decoded anew in
every pass, and the whole cluster can do that while the ranks compute: Ray Data's actors read and decode, and
``streaming_split`` deals their blocks out to the ranks, no faster than these take them.

Rows come in an endless sequence of shuffles of the set, one after another, a function of the seed alone; an epoch of
training takes the next part of it. A block is what one rank sees in one step, and blocks are dealt out in turn, so the
step and the rank of every row follow from (seed, epoch), and a run that goes on after an epoch sees what an undisturbed
one sees.

An execution of Ray Data takes seconds to start, for it starts processes. So one goes on over many epochs, and reads on
while the ranks validate; only what names its pictures has to be there from its beginning.
"""

from __future__ import annotations

import itertools
import logging
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
from ray_fer.data.loading import MAX_BAD_SHARE, MAX_PICTURE_BYTES, NAMED, Indices, Pixels, decode_read
from ray_fer.data.read import Item, read_objects
from ray_fer.errors import UserError

log = logging.getLogger(__name__)

_THREADS = 4  # of a decoder
_AHEAD = 2  # batches that wait at a rank
_WAITING = 16  # blocks of a rank that may wait in the object store
_BLOCKS = 4096  # of one execution, if that is more than an epoch: some ten kB of URIs each
_TURN = 0.05  # seconds, at least, of the scheduler
_STREAM = 3  # an independent random stream of the seed, beside those in ray_fer.data.sampling


def stream_order(rows: int, start: int, count: int, seed: int) -> Indices:
    """Places ``start`` to ``start + count`` of the endless sequence of shuffles of ``rows`` rows, int64 (count,)."""
    first, last = start // rows, (start + count - 1) // rows
    shuffles = [np.random.default_rng((seed, _STREAM, number)).permutation(rows) for number in range(first, last + 1)]
    offset = start - first * rows
    order: Indices = np.concatenate(shuffles)[offset : offset + count]
    return order


class PictureStream:
    """Batches of pictures for every rank; all ranks have to make one, and to go through the same epochs to their ends.

    Args:
        uris: N pictures, the same on every rank; only rank 0 reads them.
        image_size: side S.
        batch: B, rows of a rank in a step.
        steps: of an epoch.
        epochs: of the run.
        rank: of this process.
        ranks: how many take part.
        share: gives rank 0's bytes to every rank, as `ray_fer.training.loop.World.broadcast` does.
        seed: same seed, same rows.
        decoders: processes that read and decode; None: as many as the cluster has CPUs.

    Attributes:
        bad: rows that this rank has met and that are unreadable.
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
        share: Callable[[bytes], bytes],
        seed: int = 0,
        decoders: int | None = None,
    ) -> None:
        self.uris, self.image_size, self.batch, self.steps, self.epochs = uris, image_size, batch, steps, epochs
        self.rank, self.ranks, self.share, self.seed, self.decoders = rank, ranks, share, seed, decoders
        self.bad: set[int] = set()
        self._drawn = 0
        self._batches: Iterator[Any] = iter(())
        self._goes_on = range(0)  # epochs that are still to come from there
        self._open = False  # whether an epoch has not been gone through to its end

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
            shared = self.share(ray.cloudpickle.dumps(self._split(self._goes_on)) if self.rank == 0 else b"")
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
        """Counts the unreadable among the ``rows`` of a batch; the others have no problem but ``""``.

        Raises:
            UserError: as `epoch`.
        """
        self._drawn += len(rows)
        # One pass of a rank is its part of the set; in the end it has met the whole.
        met = min(max(self._drawn, len(self.uris) // self.ranks), len(self.uris))
        for row, problem in zip(rows, problems, strict=True):
            if not problem or row in self.bad:
                continue
            self.bad.add(row)
            if len(self.bad) <= NAMED:
                log.warning("unlabeled: %s is left out: %s", self.uris[row], problem)
            if len(self.bad) > MAX_BAD_SHARE * met:
                raise UserError(
                    f"unlabeled: {len(self.bad)} of {met} pictures cannot be read, more than {MAX_BAD_SHARE:.0%}; "
                    f"the last: {self.uris[row]} ({problem})"
                )

    def _split(self, epochs: range) -> list[Any]:
        cluster.prepare_data()
        count = self.steps * self.ranks * self.batch
        order = stream_order(len(self.uris), epochs.start * count, len(epochs) * count, self.seed)
        blocks = [
            pa.table({"row": rows, "uri": [self.uris[row] for row in rows]}) for rows in order.reshape(-1, self.batch)
        ]
        decoders = self.decoders or max(1, int(ray.cluster_resources().get("CPU", 1)))
        # No CPU is asked for: the ranks may have taken them all, and would wait for pictures for ever. So `from_arrow`
        # does not do, which looks at every block in a task of one CPU. And tasks do not do: Ray ends a process that has
        # idled for a second, and to start one for every block takes twenty times as long as to decode it.
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
        # Else it would decode on until half of the object store is full, and take the cores from the ranks meanwhile.
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
        """Of ``row`` and ``uri``: ``row``, ``pixels`` (S * S * 3 bytes) and ``problem``, empty where there is none."""
        size = self.image_size
        pixels = np.zeros((len(block), size, size, 3), np.uint8)
        reads = read_objects((Item(uri, "", 0) for uri in block["uri"].to_pylist()), MAX_PICTURE_BYTES)
        with ThreadPoolExecutor(_THREADS) as pool:
            problems = [problem or "" for problem in pool.map(decode_read, reads, pixels)]
        flat = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(size * size * 3), len(pixels), [None, pa.py_buffer(pixels)]
        )
        return pa.table({"row": block["row"], "pixels": flat, "problem": pa.array(problems, pa.string())})
