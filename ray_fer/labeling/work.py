"""What travels between the driver and the workers: a unit of work on its way out, its result on the way back.

Each travels as an Arrow table of one row, the grain at which Ray Data moves and retries. A result describes its rows
in a few kilobytes, however many they are. This module is free of Ray.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_fer.errors import UserError
from ray_fer.labeling.table import OK, SUCCESSES, WrittenFile
from ray_fer.labeling.unit import Decoded, Row

CONFIDENCE_BINS = 100
SAMPLES_PER_CLASS = 8  # one row of faces in the report
# A unit keeps that many of its most frequent error texts, and a run ten times as many.
MOST_ERRORS = 20

Sample = tuple[str, str, float]

_REFUSAL = "refusal"


@dataclass(frozen=True)
class WorkUnit:
    """Images that one worker labels together.

    Attributes:
        number: Number of the unit in its run.
        keys: Columns (uri, identity, size, source, teachers, attempts) from `ledger.claim_missing`.
    """

    number: int
    keys: pa.Table

    def to_block(self) -> pa.Table:
        """Returns the unit as a table of one row, with only those keys of a sliced table that are in the slice."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.keys.schema) as writer:
            writer.write_table(self.keys)
        return pa.table({"unit": [self.number], "keys": pa.array([sink.getvalue().to_pybytes()], pa.large_binary())})

    @classmethod
    def from_block(cls, block: pa.Table) -> WorkUnit:
        """Returns the unit that `to_block` packed."""
        return cls(block["unit"][0].as_py(), pa.ipc.open_stream(block["keys"][0].as_buffer()).read_all())


@dataclass(frozen=True)
class DecodedUnit:
    """A unit between the CPU that decoded it and the GPU that labels it.

    Attributes:
        number: Number of the unit.
        batch: All rows and crops of the unit.
        seconds: Time that reading and decoding took.
    """

    number: int
    batch: Decoded
    seconds: float

    def to_block(self) -> pa.Table:
        """Returns the unit as a table of one row, without copying the pixels."""
        rows = pickle.dumps((self.batch.rows, self.batch.teachers))
        columns = {"unit": [self.number], "seconds": [self.seconds], "rows": pa.array([rows], pa.large_binary())}
        for size, pixels in self.batch.pixels.items():
            ends = pa.py_buffer(np.array([0, pixels.nbytes]))
            columns[f"pixels_{size}"] = pa.LargeBinaryArray.from_buffers(
                pa.large_binary(), 1, [None, ends, pa.py_buffer(pixels)]
            )
        return pa.table(columns)

    @classmethod
    def from_block(cls, block: pa.Table, image_sizes: Sequence[int]) -> DecodedUnit:
        """Returns the unit that `to_block` packed; the pixels are views into ``block``."""
        rows, teachers = pickle.loads(block["rows"][0].as_py())
        flat = {size: np.frombuffer(block[f"pixels_{size}"][0].as_buffer(), np.uint8) for size in set(image_sizes)}
        pixels = {size: values.reshape(-1, size, size, 3) for size, values in flat.items()}
        return cls(block["unit"][0].as_py(), Decoded(rows, teachers, pixels), block["seconds"][0].as_py())


@dataclass(frozen=True)
class UnitStats:
    """A description of a unit's rows for one or all teachers, whose size hardly depends on the number of rows.

    Attributes:
        statuses: Number of images per status.
        retried: Number of images per status, of those that had been tried before.
        errors: The most frequent (status, error, number of images).
        confidence: Predictions of each of K classes over equal bins of the confidence from 0 to 1, int
            (K, `CONFIDENCE_BINS`).
        samples: For each class the (digest, uri, confidence) of the pictures with the smallest digests. This is a
            random choice that does not depend on the order in which units are joined.
        read_otherwise: The (uri, listed identity, identity) of the objects that were read with another identity than
            the listed one.
    """

    statuses: dict[str, int]
    retried: dict[str, int]
    errors: list[tuple[str, str, int]]
    confidence: list[list[int]]
    samples: dict[str, list[Sample]]
    read_otherwise: list[tuple[str, str, str]]


def unit_stats(rows: Sequence[Row], classes: Sequence[str]) -> UnitStats:
    """Describes the rows of a unit, whose predictions are of the K ``classes``."""
    histogram = np.zeros((len(classes), CONFIDENCE_BINS), np.int64)
    index = {name: k for k, name in enumerate(classes)}
    candidates: list[list[Sample]] = [[] for _ in classes]
    for row in rows:
        if row.status == OK:
            assert row.label is not None
            assert row.digest is not None
            k, confidence = index[row.label], float(row.confidence)
            histogram[k, min(int(confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)] += 1
            candidates[k].append((row.digest.hex(), row.uri, confidence))
    errors = Counter((row.status, row.error) for row in rows if row.error and not row.further_face)
    return UnitStats(
        statuses=dict(image_statuses(rows)),
        retried=dict(image_statuses(row for row in rows if row.attempt > 1)),
        errors=[(*key, count) for key, count in errors.most_common(MOST_ERRORS)],
        confidence=histogram.tolist(),
        samples={name: smallest_samples(found) for name, found in zip(classes, candidates, strict=True)},
        read_otherwise=[(*row.listed_as, row.identity) for row in rows if row.listed_as],
    )


def image_statuses(rows: Iterable[Row]) -> Counter[str]:
    """Counts images per status; an image with several faces has a row for each of them."""
    return Counter(row.status for row in rows if not row.further_face)


def joint_stats(statuses: dict[str, int], parts: Sequence[UnitStats]) -> UnitStats:
    """Describes a unit that several teachers have labelled.

    An image counts once, and its predictions count once per teacher.

    Args:
        statuses: Number of images per status.
        parts: Description of the rows of each teacher.
    """
    names = parts[0].samples
    retried, errors = Counter[str](), Counter[tuple[str, str]]()
    for part in parts:
        retried |= Counter(part.retried)
        errors |= Counter({(status, error): count for status, error, count in part.errors})
    return UnitStats(
        statuses=statuses,
        retried=dict(retried),
        errors=[(*key, count) for key, count in errors.items()],
        confidence=np.sum([part.confidence for part in parts], axis=0).tolist(),
        samples={name: smallest_samples(found for part in parts for found in part.samples[name]) for name in names},
        read_otherwise=[],
    )


def failures_in(statuses: Mapping[str, int]) -> dict[str, int]:
    """Returns those entries of the images per status that are failures."""
    return {status: count for status, count in statuses.items() if status not in SUCCESSES}


def smallest_samples(samples: Iterable[Sample]) -> list[Sample]:
    """Returns the `SAMPLES_PER_CLASS` samples with the smallest digests, in their order and each digest once."""
    unique = {sample[0]: sample for sample in samples}
    return [unique[digest] for digest in sorted(unique)[:SAMPLES_PER_CLASS]]


@dataclass(frozen=True)
class UnitResult:
    """The result of a unit.

    Attributes:
        number: Number of the unit.
        statuses: Number of images per status.
        files: Written file of each model that lacked some of the images.
        stats: Description of the rows of each of these models.
        seconds: Time from reading to writing.
    """

    number: int
    statuses: dict[str, int]
    files: dict[str, WrittenFile]
    stats: dict[str, UnitStats]
    seconds: float

    @property
    def images(self) -> int:
        """Number of images in the unit."""
        return sum(self.statuses.values())

    def to_block(self) -> pa.Table:
        """Returns the result as a table of one row."""
        return pa.table({"result": pa.array([pickle.dumps(self)], pa.binary())})

    @classmethod
    def from_block(cls, block: pa.Table) -> UnitResult:
        """Returns the result that `to_block` packed.

        Raises:
            UserError: If ``block`` is a `refusal`.
        """
        if is_refusal(block):
            raise UserError(block[_REFUSAL][0].as_py())
        result: UnitResult = pickle.loads(block["result"][0].as_py())
        return result


def refusal(error: UserError) -> pa.Table:
    """Returns the table of one row that tells the driver why a worker cannot go on."""
    return pa.table({_REFUSAL: [str(error)]})


def is_refusal(block: pa.Table) -> bool:
    """Returns whether ``block`` is what `refusal` made."""
    return _REFUSAL in block.column_names
