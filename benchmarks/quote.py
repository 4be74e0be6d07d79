"""Numbers of the committed results, as text to quote: README's table of results, and the pages under ``docs/``.

``python -m benchmarks.quote`` writes the table into README.md. It reads JSON only, so that it needs no torch.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import RESULTS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- results: python -m benchmarks.quote -->", "<!-- end of results -->"
LOCAL, S3, CROPS = (f"labeling-mobilenetv3_small_100{suffix}" for suffix in ("", "-s3", "-crops"))


def main() -> None:
    """Writes the table into README.md."""
    README.write_text(with_results(README.read_text()))


def with_results(text: str) -> str:
    """``text`` with the present table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{results_table()}\n{END}{after}"


def results_table() -> str:
    """README's table of results, in Markdown."""
    tenth = 0.1
    alone, fewer = f"labels alone {ssl('supervised')}", f"labels alone {ssl('supervised', budget=tenth)}"
    again = "a second run: 10,000 objects, 200 of them new or changed"
    learns_on = "FER+ macro-F1, 2,961 labels, teacher that learns on"
    top_k, noisy = ssl("ours, top-k", budget=tenth), f"Noisy Student {ssl('noisy student', budget=tenth)}"
    rows = [
        ("label local JPEGs", f"{rate(LOCAL)} images/s", _others(LOCAL)),
        ("label JPEGs on S3", f"{rate(S3)} images/s", _others(S3)),
        (again, f"{second_run()} s", f"DataChain {second_run('DataChain')} s"),
        ("find 10⁵ new images beside 10⁷ labelled ones", f"{ledger(10_000_000)} s", ""),
        ("select from 10⁷ predictions (`threshold`)", f"{selection('threshold')} s", ""),
        ("train resnet10t at 48 px", f"{training('ray-fer')} images/s", f"bare PyTorch loop {training('bare loop')}"),
        (learns_on, ssl("ours"), f"{alone}, one round of pseudo-labels {ssl('pseudo-label')}"),
        ("FER+ macro-F1, a tenth of the labels, the same with `top_k`", top_k, f"{fewer}, {noisy}"),
    ]
    return "\n".join(["| | ray-fer | for comparison |", "|---|---:|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def _others(name: str) -> str:
    called = {"bare loop": "loop without a framework", "Ray template": "Ray Data as documented"}
    others = [row["name"] for row in load(name)["rows"] if row["name"] != "ray-fer"]
    return ", ".join(f"{called.get(each, each)} {rate(name, each)}" for each in others)


def load(name: str) -> dict[str, Any]:
    """The contents of ``results/NAME.json``."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def table(name: str) -> str:
    """``results/NAME.md``, which its benchmark makes from ``NAME.json``, with its headings two levels lower."""
    lines = (RESULTS / f"{name}.md").read_text().splitlines()
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in lines)


def rate(name: str, contestant: str = "ray-fer") -> str:
    """Images per second of a contestant in a comparison of labelling speed."""
    return f"{_row(name, 'name', contestant)['images_per_second']:,.0f}"


def training(contestant: str) -> str:
    """Images per second of training."""
    return f"{_row('training-throughput', 'name', contestant)['images_per_second']:.0f}"


def second_run(tool: str = "ray-fer", store: str = "local") -> str:
    """Median seconds of a second run, of ``tool`` on ``store`` (``local`` or ``S3``)."""
    runs = load("labeling-incremental")["wall_seconds_first_and_second"][store][tool]
    return f"{statistics.median(second for _, second in runs):.1f}"


def ledger(keys: int) -> str:
    """Seconds to find the new images beside ``keys`` in the table, beyond the listing itself; of the slowest run."""
    runs = [run for row in load("ledger")["rows"] if row["rows"] == keys for run in row["runs"]]
    return f"{max(run['build'] + run['claim'] for run in runs):.1f}"


def selection(rule: str, predictions: int = 10_000_000) -> str:
    """Seconds of the whole job."""
    (row,) = (row for row in load("selection")["rows"] if row["rows"] == predictions)
    return f"{row['rules'][rule]['seconds']:.0f}"


def backbones() -> dict[str, int]:
    """How many trials of a backbone at a size ended in which way, and how many ``modules`` there are of timm's."""
    models = load("backbones")["models"]
    cells = [str(cell) for model in models for cell in model.get("cells", {}).values()]
    kinds = {kind: sum(cell.startswith(kind) for cell in cells) for kind in ("ok", "refused", "not tried")}
    kinds["too large"] = kinds.pop("not tried")
    return kinds | {
        "modules": len(models),
        "untried": sum("cells" not in model for model in models),
        "trials": len(cells),
    }


def ssl(method: str, passes: int = 160_000, budget: float = 1.0, lfw: bool = False, key: str = "macro_f1") -> str:
    """A held-out score in percent with its standard deviation over the seeds, as the table of the benchmark has it."""
    wanted = {"method": method, "passes": passes, "budget": budget, "lfw": lfw}
    runs = [{"lfw": False} | json.loads(line) for line in (RESULTS / "ssl.jsonl").read_text().splitlines()]
    scores = [100 * run["heldout"][key] for run in runs if all(run[name] == value for name, value in wanted.items())]
    if not scores:
        raise KeyError(f"no run of {wanted}")
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.1f}{spread}"


def heads(method: str, budget: float, key: str = "macro_f1_frequent") -> str:
    """Mean held-out score in percent of a method in the heads regime, and of how many seeds."""
    scores = [100 * score for score in _heads(method, budget, key).values()]
    return f"{statistics.mean(scores):.1f} ({len(scores)} seeds)"


def heads_gain(method: str, against: str, budget: float, key: str = "macro_f1_frequent") -> str:
    """Mean difference of two methods of the heads regime, paired by seed, with its interval, as the table has it."""
    mine, theirs = _heads(method, budget, key), _heads(against, budget, key)
    both = sorted(mine.keys() & theirs.keys())
    gains = [100 * (mine[seed] - theirs[seed]) for seed in both]
    low, high = interval(gains)
    return f"{statistics.mean(gains):+.1f} [{low:+.1f}, {high:+.1f}]"


def interval(differences: Sequence[float], draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of paired differences."""
    values = np.asarray(differences, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _heads(method: str, budget: float, key: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (RESULTS / "ssl-heads.jsonl").read_text().splitlines()]
    found = {line["seed"]: line[key] for line in lines if (line["method"], line["budget"]) == (method, budget)}
    if not found:
        raise KeyError(f"no run of {method} with {budget:.0%} of the labels")
    return found


def _row(name: str, key: str, value: str) -> dict[str, Any]:
    (row,) = (row for row in load(name)["rows"] if row[key] == value)
    return dict(row)


if __name__ == "__main__":
    main()
