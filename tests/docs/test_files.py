"""What stands in the root, and what is made from other files and committed."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

import ray_fer
from benchmarks import quote
from benchmarks.results import RESULTS
from ray_fer.data.formats import FORMATS, Entry
from ray_fer.data.sources.spec import Source
from ray_fer.evaluation.metrics import evaluate_probs
from ray_fer.selection import Rule, SelectionContext
from tests.docs.commands import ROOT, pages
from tests.images import write_pictures

BENCHMARKS = {
    "backbones": "backbones",
    "heads": "heads",
    "labeling-incremental": "labeling.compare_incremental",
    "labeling-kill-loss": "labeling.kill_loss",
    "labeling-overhead": "labeling.overhead",
    "labeling-simulated-gpus": "labeling.simulated_gpus",
    "ledger": "ledger",
    "selection": "selection",
    "training-stream": "training.stream",
    "training-throughput": "training.throughput",
    "training-zero-memory": "training.zero_memory",
}
"""Results and the modules that make them; all others are of `benchmarks.labeling.compare`."""


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files_with_such_headings(file: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / file).read_text()):
        place, _, anchor = target.partition("#")
        text = (ROOT / place).read_bytes()
        headings = re.findall(r"^#+ (.*)$", text.decode(), re.MULTILINE) if place.endswith(".md") else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_version_stands_in_one_place() -> None:
    assert importlib.metadata.version("ray-fer") == ray_fer.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == ray_fer.__version__
    assert '\nversion = "' not in (ROOT / "pyproject.toml").read_text()


def test_the_table_of_results_is_the_benchmarks() -> None:
    text = (ROOT / "README.md").read_text()
    assert quote.BEGIN in text
    assert quote.with_results(text) == text, "python -m benchmarks.quote"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_a_table_of_a_benchmark_is_that_of_its_json(file: Path) -> None:
    module = importlib.import_module(f"benchmarks.{BENCHMARKS.get(file.stem, 'labeling.compare')}")
    assert module.markdown(json.loads(file.read_text())) == file.with_suffix(".md").read_text()


def test_the_table_of_methods_is_that_of_its_runs(tmp_path: Path) -> None:
    table = importlib.import_module("benchmarks.ssl.table")
    runs = tmp_path / "ssl.jsonl"
    runs.write_bytes((RESULTS / "ssl.jsonl").read_bytes())
    table.write_table(runs)
    assert runs.with_suffix(".md").read_text() == (RESULTS / "ssl.md").read_text()


def test_quotes_are_those_of_the_table() -> None:
    text = (RESULTS / "ssl.md").read_text()
    for method, budget in (("supervised", 1.0), ("pseudo-label", 0.33), ("noisy student", 0.1), ("ours, top-k", 0.1)):
        section = text.partition(f"160,000 image passes, {budget:.0%} of the labels\n")[2].partition("\n## ")[0]
        (row,) = (line for line in section.splitlines() if line.startswith(f"| {method} |"))
        assert row.split(" | ")[4] == quote.ssl(method, budget=budget)
    assert quote.rate(quote.LOCAL, "torch DataLoader") == "970"
    assert quote.backbones()["trials"] == sum(quote.backbones()[kind] for kind in ("ok", "refused", "too large"))


def _example(mark: str) -> dict[str, Any]:
    """The names that the guide's block of Python with ``mark`` in it defines."""
    blocks = (ROOT / "CONTRIBUTING.md").read_text().split("```python\n")[1:]
    names: dict[str, Any] = {"__name__": __name__}
    exec(next(block for block in blocks if mark in block).partition("```")[0], names)
    return names


def test_the_figure_in_the_guide_is_one() -> None:
    figure = _example("def draw(")
    metrics = evaluate_probs(np.eye(3, dtype=np.float32), np.arange(3), ("neutral", "anger", "fear"))
    assert figure["draw"](metrics).startswith(b"\x89PNG")
    assert figure["CAPTION"]


def test_the_format_in_the_guide_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "in", range(3))
    pictures = sorted(str(file) for file in (tmp_path / "in").rglob("*.jpg"))
    (tmp_path / "list.json").write_text(json.dumps(pictures))
    monkeypatch.setitem(sys.modules, "guide", SimpleNamespace(**_example("class JsonList")))
    monkeypatch.setitem(FORMATS, "json", Entry("guide:JsonList"))
    source = Source(str(tmp_path / "list.json"), "json")
    listed = pa.concat_tables(source.kind.list_images(source, Counter()))
    assert listed["uri"].to_pylist() == pictures
    assert min(listed["size"].to_pylist()) > 0


def test_the_rule_in_the_guide_is_one() -> None:
    rule: Rule = _example("(Rule)")["Margin"]()
    probs = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.15, 0.75]], np.float32)
    known = SelectionContext(thresholds=np.full(3, 0.8, np.float32))
    for given in (probs, torch.from_numpy(probs)):
        accepted = rule.accept(given, rule.start(known), known)
        assert np.asarray(accepted.weights).tolist() == [1, 0, 1]
        assert np.asarray(accepted.labels).tolist() == [0, 1, 2]


@pytest.mark.parametrize("page", pages())
def test_old_names_are_gone(page: str) -> None:
    if page != "docs/changelog.md":
        assert not re.search(r"\brecipe\w*=|\bsettings\.\w+=|\bonline\.\w+=", (ROOT / page).read_text())


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")) + [ROOT / ".pre-commit-config.yaml"])
def test_configurations_are_yaml(file: Path) -> None:
    assert yaml.safe_load(file.read_text())


def test_the_workflow_runs_what_ci_runs() -> None:
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert (ROOT / ".ci" / "run").exists()
