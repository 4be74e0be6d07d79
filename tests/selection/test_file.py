"""What training makes of a selection that is damaged: one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_fer.errors import UserError
from ray_fer.selection.file import INFO, ROWS, SCHEMA, read_selection

CLASSES = ("neutral", "anger")
GOOD = {
    "uri": ["a", "b"],
    "label": ["anger", "neutral"],
    "target": [[0.25, 0.75], [0.9, 0.1]],
    "weight": [1.0, 0.5],
    "confidence": [0.75, 0.9],
}


def write(folder: Path, rows: dict[str, Any] | None = None, **info: Any) -> str:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(GOOD | (rows or {}), SCHEMA), folder / ROWS)
    (folder / INFO).write_text(json.dumps({"classes": CLASSES, "table": "t", "version": 1} | info))
    return str(folder)


def said_of(folder: str) -> str:
    with pytest.raises(UserError) as refused:
        read_selection(folder, CLASSES)
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    return said.removeprefix(f"pseudo={folder}: ")


def test_a_whole_one(tmp_path: Path) -> None:
    found = read_selection(write(tmp_path, sampling_weights={"anger": 2.0}), CLASSES)
    assert found.uris == ["a", "b"]
    assert found.targets.tolist() == [[0.25, 0.75], pytest.approx([0.9, 0.1])]
    assert found.weights.tolist() == [1.0, 0.5]
    assert found.plain_weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ("", "selection.json: not JSON (the file is empty)"),
        ('{"classes": ["neu', "selection.json: not JSON (Unterminated string"),
        ("[]", "selection.json: input should be a valid dictionary"),
        ("{}", "selection.json: classes: is missing"),
        ('{"classes": ["neutral", "anger"]}', "selection.json: table: is missing"),
        ('{"classes": "neutral", "table": "t"}', "selection.json: classes: input should be a valid list"),
        (
            '{"classes": ["neutral", "anger"], "table": "t", "sampling_weights": {"anger": NaN}}',
            "selection.json: sampling_weights.anger: input should be a finite number, not nan",
        ),
        (
            '{"classes": ["neutral", "anger"], "table": "t", "sampling_weights": {"anger": 0}}',
            "selection.json: sampling_weights.anger: input should be greater than 0, not 0",
        ),
        ('{"classes": ["a", "b"], "table": "t"}', "its classes a, b are not those of labeled, neutral, anger"),
    ],
)
def test_a_damaged_description(info: str, said: str, tmp_path: Path) -> None:
    folder = write(tmp_path)
    (tmp_path / INFO).write_text(info)
    assert said_of(folder).startswith(said)


@pytest.mark.parametrize("kept", [0, 3, 100])
def test_rows_that_are_cut(kept: int, tmp_path: Path) -> None:
    folder = write(tmp_path)
    (tmp_path / ROWS).write_bytes((tmp_path / ROWS).read_bytes()[:kept])
    assert said_of(folder).startswith("selection.parquet cannot be read (")


@pytest.mark.parametrize(
    "rows",
    [
        {"target": [[0.25, 0.75], [0.9]]},
        {"target": [[0.25, 0.75], None]},
        {"target": [[0.2, 0.7, 0.1]] * 2},
        {"uri": ["a", None]},
    ],
)
def test_rows_of_another_shape(rows: dict[str, Any], tmp_path: Path) -> None:
    said = said_of(write(tmp_path, rows))
    assert said == "selection.parquet has rows without a uri or without a target of 2 numbers"


@pytest.mark.parametrize(
    "rows",
    [
        {"target": [[0.25, 0.75], [None, 0.1]]},
        {"target": [[0.25, 0.75], [float("nan"), 0.1]]},
        {"target": [[0.25, 0.75], [-0.1, 1.1]]},
        {"weight": [1.0, None]},
        {"weight": [1.0, float("inf")]},
        {"weight": [1.0, -1.0]},
    ],
)
def test_numbers_that_cannot_be(rows: dict[str, Any], tmp_path: Path) -> None:
    assert said_of(write(tmp_path, rows)) == (
        "selection.parquet has weights or targets that are no finite numbers from 0 on"
    )


def test_columns_that_are_missing_or_of_another_kind(tmp_path: Path) -> None:
    folder = write(tmp_path)
    pq.write_table(pa.table({"uri": ["a"], "weight": [1.0]}), tmp_path / ROWS)
    assert said_of(folder).startswith("selection.parquet cannot be read (")
    pq.write_table(pa.table({"uri": ["a"], "target": ["x"], "weight": [1.0]}), tmp_path / ROWS)
    assert said_of(folder).startswith("selection.parquet cannot be read (")


def test_what_is_missing_or_empty(tmp_path: Path) -> None:
    assert said_of(str(tmp_path / "none")) == "no selection there (selection.json is missing)"
    assert said_of(write(tmp_path, {"weight": [0.0, 0.0]})) == "the selection is empty"
    (tmp_path / ROWS).unlink()
    assert said_of(str(tmp_path)).startswith("selection.parquet cannot be read (")
