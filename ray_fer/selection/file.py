"""The files of a selection: what selecting writes and training reads."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from ray_fer import storage
from ray_fer.documents import MissingDocumentError, read_document
from ray_fer.errors import UserError, as_user_error, one_line
from ray_fer.selection.rule import Accepted, harden

INFO = "selection.json"
ROWS = "selection.parquet"
SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("label", pa.string()),
        ("target", pa.list_(pa.float32())),
        ("weight", pa.float32()),
        ("confidence", pa.float32()),
    ]
)


Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Info(TypedDict):
    """What training reads of ``selection.json``."""

    classes: list[str]
    table: str
    models: NotRequired[list[str]]
    model: NotRequired[str]
    sampling_weights: NotRequired[dict[str, Weight]]


class Origin(Info):
    """What says where a selection comes from."""

    version: int
    teacher: NotRequired[str]
    teachers: NotRequired[list[str]]
    teacher_uris: NotRequired[list[str]]
    feedback: NotRequired[str | None]
    feedback_version: NotRequired[int]
    rule: NotRequired[dict[str, Any] | None]


class Outcome(Origin):
    """What the job that made it has found."""

    considered: int
    accepted: int
    counts: dict[str, int]
    predicted: dict[str, int]
    thresholds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Selection:
    """Pseudo-labels as `select_pseudo_labels` wrote them.

    Attributes:
        uris: M pictures.
        targets: float32 (M, K), rows sum to 1.
        weights: float32 (M,), how often each is drawn, relative to the others.
        info: ``selection.json``.
    """

    uris: Sequence[str]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    info: dict[str, Any]

    @property
    def plain_weights(self) -> NDArray[np.float32]:
        """The weights without the feedback's sampling weights under which the selection was made."""
        earlier = self.info.get("sampling_weights", {})
        per_class = np.array([earlier.get(name, 1.0) for name in self.info["classes"]], np.float32)
        plain: NDArray[np.float32] = self.weights / per_class[self.targets.argmax(axis=1)]
        return plain


def to_table(
    uris: pa.Array, accepted: Accepted, class_weights: NDArray[np.floating], classes: Sequence[str], targets: str
) -> pa.Table:
    """Returns accepted pseudo-labels as a table of `SCHEMA`.

    Args:
        uris: N strings.
        accepted: N rows of numpy arrays.
        class_weights: sampling weights, (K,).
        classes: K names.
        targets: ``soft`` for probabilities, ``hard`` for one-hot vectors.
    """
    labels, soft = accepted.labels, accepted.targets
    kept = harden(labels, len(classes)) if targets == "hard" else soft
    ends = np.arange(0, kept.size + 1, len(classes), dtype=np.int32)
    columns = [
        uris.cast(pa.string()),
        pa.DictionaryArray.from_arrays(labels, list(classes)).cast(pa.string()),
        pa.ListArray.from_arrays(ends, pa.array(kept.ravel())),
        pa.array(accepted.weights * class_weights[labels], pa.float32()),
        pa.array(soft.max(axis=1)),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def read_selection(uri: str, classes: tuple[str, ...]) -> Selection:
    """Reads the folder ``uri``.

    Raises:
        UserError: when there is no selection, it is damaged, has other classes, or nothing in it can be drawn.
    """
    try:
        info = read_document(storage.join(uri, INFO), Info)
        data = storage.read_bytes(storage.join(uri, ROWS))
    except MissingDocumentError:
        raise UserError(f"pseudo={uri}: no selection there ({INFO} is missing)") from None
    except UserError as error:
        raise UserError(f"pseudo={uri}: {str(error).replace(storage.join(uri, INFO), INFO)}") from None
    except (OSError, BotoCoreError) as error:
        raise UserError(f"pseudo={uri}: {ROWS} cannot be read ({one_line(error)})") from None
    if tuple(info["classes"]) != classes:
        theirs, ours = ", ".join(info["classes"]), ", ".join(classes)
        raise UserError(f"pseudo={uri}: its classes {theirs} are not those of labeled, {ours}")
    with as_user_error(f"pseudo={uri}: {ROWS} cannot be read", (pa.ArrowException, OSError)):
        table = pq.read_table(io.BytesIO(data), columns=["uri", "target", "weight"])
        table = table.cast(pa.schema([SCHEMA.field(name) for name in table.column_names]))
    weights, targets = (table[name].combine_chunks() for name in ("weight", "target"))
    matrix = pc.list_flatten(targets)
    lacking = table["uri"].null_count + targets.null_count
    if lacking or pc.any(pc.not_equal(pc.list_value_length(targets), len(classes))).as_py():
        raise UserError(f"pseudo={uri}: {ROWS} has rows without a uri or without a target of {len(classes)} numbers")
    weights, matrix = (np.asarray(array.to_numpy(zero_copy_only=False), np.float32) for array in (weights, matrix))
    if not (np.isfinite(weights).all() and np.isfinite(matrix).all() and (weights >= 0).all() and (matrix >= 0).all()):
        raise UserError(f"pseudo={uri}: {ROWS} has weights or targets that are no finite numbers from 0 on")
    if not weights.any():
        raise UserError(f"pseudo={uri}: the selection is empty")
    return Selection(table["uri"].to_pylist(), matrix.reshape(len(weights), len(classes)), weights, dict(info))
