"""What the pages quote of paired benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import quote


def test_gains_are_paired_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"ours": {0: 0.50, 1: 0.70, 2: 0.90}, "labels only": {0: 0.48, 1: 0.66}}
    lines = [
        {"method": method, "budget": 0.1, "seed": seed, "accuracy": score}
        for method, runs in scores.items()
        for seed, score in runs.items()
    ]
    (tmp_path / "ssl-heads.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(quote, "RESULTS", tmp_path)
    assert quote.heads("ours", 0.1, "accuracy") == "70.0 (3 seeds)"
    assert quote.heads_gain("ours", "labels only", 0.1, "accuracy") == "+3.0 [+2.0, +4.0]"
    with pytest.raises(KeyError, match="no run of ours with 33% of the labels"):
        quote.heads("ours", 0.33)
