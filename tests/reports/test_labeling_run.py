from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_fer.reports.labeling_run import run_report
from tests.images import picture
from tests.reports.test_page import Page

CLASSES = ("neutral", "<anger>")
COUNTS = {"predicted": {"neutral": 30, "<anger>": 10}, "statuses": {"ok": 40, "undecodable": 2}, "sure_share": 0.5}


def page_of(folder: Path, **changes: Any) -> Page:
    (folder / "a.jpg").write_bytes(picture(1))
    summary = {
        "run": "r1", "model": "m<1>", "table": "/t", "labelled": 42, "already_labelled": 3, "images_per_second": 12.4,
        "core_hours": 0.5, **COUNTS,
    } | changes  # fmt: skip
    return Page(
        run_report(
            summary,
            failed=2,
            threshold=0.8,
            confidence=np.repeat([[3], [1]], 10, axis=1),
            samples={"neutral": [("0", str(folder / "a.jpg"), 0.9)], "<anger>": [("1", str(folder / "gone.jpg"), 0.7)]},
            timeline=[(0.0, 0), (1.0, 20), (2.0, 42)],
        )
    )


@pytest.mark.parametrize("device", ["core", "gpu"])
def test_one_teacher(device: str, tmp_path: Path) -> None:
    page = page_of(tmp_path, **{f"{device}_hours": 0.5})
    assert sum(tag == "img" for tag, _ in page.tags) == 4
    assert "run r1, model m<1>, table /t" in page.words
    assert ("GPU-hours" in page.words) == (device == "gpu")
    assert page.words[page.words.index("without a prediction") + 1] == "2"
    assert page.words[page.words.index("images per second") + 1] == "12"
    assert page.words[page.words.index("undecodable") + 1] == "2"
    assert "Faces" in page.words


def test_several_teachers(tmp_path: Path) -> None:
    part = {"teacher": "/x", "labelled": 42, "already_labelled": 3, **COUNTS}
    page = page_of(tmp_path, models={"m<1>": part, "m2": part})
    assert "run r1, models m<1>, m2, table /t" in page.words
    row = page.words.index("m2")
    assert page.words[row : row + 5] == ["m2", "/x", "42", "3", "0.500"]
    assert "at 0.8 or more" in page.words
