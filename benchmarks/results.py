"""Where and when a benchmark was run, and the pair of files that it leaves in ``benchmarks/results/``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_results(out: Path, name: str, facts: dict[str, Any], markdown: Callable[[dict[str, Any]], str]) -> None:
    """Writes ``out/NAME.json`` and ``out/NAME.md``, and prints the latter.

    Args:
        out: a folder.
        name: of the benchmark.
        facts: what was measured; date and machine are put before it.
        markdown: makes the table for people of it all.
    """
    document = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()} | facts
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    (out / f"{name}.md").write_text(markdown(document))
    print(markdown(document))


def machine() -> str:
    """The processor's name, where Linux tells it, and the number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {len(os.sched_getaffinity(0))} cores"
