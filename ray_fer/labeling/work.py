"""What travels between the driver and the workers: a unit of work on its way out, its result on the way back.

Each travels as an Arrow table of one row, the grain at which Ray Data moves and retries. This module is free of Ray.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_fer.errors import UserError
from ray_fer.labeling.progress import UnitStats
from ray_fer.labeling.table import WrittenFile
from ray_fer.labeling.unit import Decoded

_REFUSAL = "refusal"


@dataclass(frozen=True)
class WorkUnit:
    """Images that one worker labels together.

    Attributes:
        number: of the unit in its run.
        keys: (uri, identity, size, source, teachers, attempts), as `ledger.claim_missing` gives them.
    """

    number: int
    keys: pa.Table

    def to_block(self) -> pa.Table:
        """Returns the unit as a table of one row; of a slice of a table only the slice travels."""
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
        number: of the unit.
        batch: all of its rows and crops.
        seconds: that reading and decoding took.
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
class UnitResult:
    """What came of a unit.

    Attributes:
        number: of the unit.
        statuses: its images per status.
        files: for each model that lacked some of them the written file.
        stats: for each of these models the description of its rows.
        seconds: from reading to writing.
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
            UserError: ``block`` is a `refusal`.
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
