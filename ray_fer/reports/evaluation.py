"""One HTML page that can be mailed, archived or opened from a bucket: no scripts, no fonts, no links to anything.

Pictures travel inside the page as data: URIs, a third larger than the PNG; a typical evaluation is about half a
megabyte. All text is escaped, for class names and file names come from users. The page follows the reader's light or
dark setting; pictures keep a white ground in both, so their colours stay the tested ones.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from ray_fer.evaluation.metrics import Reliability, class_scores
from ray_fer.reports.metric_plots import (
    class_score_bars,
    confusion_plot,
    coverage_plot,
    reliability_plot,
)
from ray_fer.reports.plot_style import DPI
from ray_fer.reports.plots import class_histogram

PIXELS_PER_INCH = 82
STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --muted: #5f6b7a; --page: #f6f8fa; --card: #ffffff; --line: #dfe5ec;
  --accent: #0072b2; --stripe: #f7f9fb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --muted: #9aa7b5; --page: #12171d; --card: #1b222b;
  --line: #313b47; --accent: #6cb6e8; --stripe: #202832; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header { border-bottom: 3px solid var(--accent); margin-bottom: 1.5rem; padding-bottom: .75rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
p { max-width: 46rem; margin: .5rem 0; }
.subtitle, figcaption, caption { color: var(--muted); }
.subtitle { margin: .4rem 0 0; overflow-wrap: anywhere; }
.keys { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.keys div, figure, .table { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.keys div { padding: .8rem 1rem; display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.keys dt { color: var(--muted); font-size: .85rem; }
.keys dd { margin: 0; font-size: 1.6rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; margin: 1rem 0; }
figure { margin: 0; padding: .75rem; max-width: 100%; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: .35rem; padding: .35rem; }
figcaption { font-size: .9rem; margin: .6rem .25rem .1rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
caption { caption-side: bottom; text-align: left; padding: .6rem 1rem; font-size: .9rem; }
th, td { padding: .45rem 1rem; text-align: left; white-space: nowrap; }
th { font-weight: 600; }
thead th { border-bottom: 2px solid var(--line); color: var(--muted); font-size: .85rem; }
tbody tr:nth-child(even) { background: var(--stripe); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
@media print { body { background: #fff; } figure, .table { break-inside: avoid; } }
"""


class Report:
    """A page built from top to bottom; every method adds one thing and returns the report, so that calls chain.

    Numbers are shown the same way everywhere: integers with thousands separators, other numbers with three decimals,
    None and NaN as n/a. Consecutive figures stand side by side where the screen is wide enough.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        """Start a page with its heading and the line below it."""
        self._title = title
        self._subtitle = subtitle
        self._parts: list[str] = []
        self._figures: list[str] = []

    def section(self, heading: str, text: str = "") -> Self:
        """A heading, with a paragraph below it if there is text."""
        self._add(f"<h2>{html.escape(heading)}</h2>")
        return self.text(text) if text else self

    def text(self, text: str) -> Self:
        """A paragraph of plain text."""
        return self._add(f"<p>{html.escape(text)}</p>")

    def key_numbers(self, numbers: Mapping[str, object]) -> Self:
        """A row of large numbers, {label: value}."""
        cells = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(_shown(v))}</dd></div>" for k, v in numbers.items())
        return self._add(f'<dl class="keys">{"".join(cells)}</dl>')

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> Self:
        """A table; a column whose values are all numbers or missing is aligned on the right.

        Raises:
            ValueError: A row does not have one value per column.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row of {len(row)} values in a table of {len(columns)} columns: {list(row)}")
        numeric = [all(_is_number(row[k]) for row in rows) for k in range(len(columns))]
        head = "".join(_cell("th", name, right) for name, right in zip(columns, numeric, strict=True))
        body = "".join(
            f"<tr>{''.join(_cell('td', _shown(v), right) for v, right in zip(row, numeric, strict=True))}</tr>"
            for row in rows
        )
        note = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        return self._add(
            f'<div class="table"><table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def figure(self, png: bytes, caption: str = "") -> Self:
        """A picture, with a caption that also serves as its text alternative."""
        source = base64.b64encode(png).decode("ascii")
        # Shown at one scale, pictures of different widths have lettering of one size.
        width = round(int.from_bytes(png[16:20], "big") * PIXELS_PER_INCH / DPI)
        note = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self._figures.append(
            f'<figure style="width: {width}px"><img alt="{html.escape(caption)}" '
            f'src="data:image/png;base64,{source}">{note}</figure>'
        )
        return self

    def html(self) -> str:
        """The whole page."""
        self._flush_figures()
        title = html.escape(self._title)
        subtitle = f'<p class="subtitle">{html.escape(self._subtitle)}</p>' if self._subtitle else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<header><h1>{title}</h1>{subtitle}</header>\n" + "\n".join(self._parts) + "\n</main>\n</body>\n</html>\n"
        )

    def _add(self, part: str) -> Self:
        self._flush_figures()
        self._parts.append(part)
        return self

    def _flush_figures(self) -> None:
        if self._figures:
            self._parts.append(f'<div class="figures">{"".join(self._figures)}</div>')
            self._figures = []


CAPTIONS = {
    "confusion_matrix": "Rows are true, columns predicted; colour and percentage are shares of the true class.",
    "per_class_f1": "F1 of each class; the triangles are its precision and recall.",
    "reliability": "Accuracy against confidence: calibrated means on the diagonal. Pale bins: under 10 examples.",
    "coverage": "What an acceptance threshold keeps, and how much of that is right.",
    "class_mix": "True labels against predictions: differences are the model's bias on this set.",
}


def evaluation_figures(metrics: Mapping[str, Any], probs: ArrayLike, labels: ArrayLike) -> dict[str, bytes]:
    """The pictures of an evaluation as PNG, by name.

    They are `confusion_matrix`, `per_class_f1`, `reliability`, `class_mix` and `coverage`.

    Args:
        metrics: The result of `ray_fer.evaluation.metrics.evaluate_probs`.
        probs: Probabilities, (N, K).
        labels: True class indices, (N,); rows with -1 are ignored.
    """
    truth = np.asarray(labels, dtype=np.int64)
    known = truth != -1
    p, y, classes = np.asarray(probs)[known], truth[known], metrics["classes"]
    predictions = p.argmax(axis=1)
    mix = {
        "true labels": np.bincount(y, minlength=len(classes)),
        "predictions": np.bincount(predictions, minlength=len(classes)),
    }
    return {
        **metric_figures(metrics),
        "class_mix": class_histogram(mix, classes),
        "coverage": coverage_plot(p.max(axis=1, initial=0.0), predictions == y),
    }


def evaluation_report(
    metrics: Mapping[str, Any], *, title: str, model: str, data: str, figures: Mapping[str, bytes] | None = None
) -> str:
    """The HTML page of one evaluation.

    Args:
        metrics: The result of `ray_fer.evaluation.metrics.evaluate_probs`.
        title: Heading of the page.
        model: Which model was evaluated, e.g. its id or URI.
        data: On which labelled set.
        figures: Pictures from `evaluation_figures`; None draws those that the metrics alone allow.
    """
    report = Report(title, f"model {model} on {data}")
    report.key_numbers(
        {
            "macro-F1": metrics["macro_f1"],
            "standard error of macro-F1": metrics["macro_f1_se"],
            "accuracy": metrics["accuracy"],
            "calibration error (ECE)": metrics["ece"],
            "negative log-likelihood": metrics["nll"],
            "examples": metrics["n"],
        }
    )
    report.text(
        "Macro-F1 is the unweighted mean of the F1 of the classes, pooled over all examples; a class that is neither "
        "true nor predicted anywhere is left out. The standard error is a bootstrap that takes examples as independent."
    )
    report.section("Classes").table(
        ["class", "examples", "precision", "recall", "F1"],
        [
            [name, row["support"], row["precision"], row["recall"], row["f1"]]
            for name, row in metrics["per_class"].items()
        ],
        "n/a is a ratio without examples or without predictions.",
    )
    report.section("Figures")
    for name, png in (figures or metric_figures(metrics)).items():
        report.figure(png, CAPTIONS.get(name, name))
    report.section("Most frequent confusions").table(
        ["true", "predicted", "examples", "share of the true class"], _confusions(metrics)
    )
    return report.html()


def metric_figures(metrics: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures that the result of `ray_fer.evaluation.metrics.evaluate_probs` alone allows, as PNG, by name."""
    classes, confusion, bins = metrics["classes"], np.asarray(metrics["confusion_matrix"]), metrics["reliability"]
    reliability = Reliability(
        edges=np.asarray(bins["edges"], dtype=np.float64),
        count=np.asarray(bins["count"], dtype=np.int64),
        confidence=np.asarray(bins["confidence"], dtype=np.float64),
        accuracy=np.asarray(bins["accuracy"], dtype=np.float64),
    )
    return {
        "confusion_matrix": confusion_plot(confusion, classes),
        "per_class_f1": class_score_bars(class_scores(confusion), classes),
        "reliability": reliability_plot(reliability),
    }


def _confusions(metrics: Mapping[str, Any], limit: int = 10) -> list[list[object]]:
    classes, confusion = metrics["classes"], metrics["confusion_matrix"]
    pairs = [
        [classes[i], classes[j], n, n / sum(row)]
        for i, row in enumerate(confusion)
        for j, n in enumerate(row)
        if i != j and n
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:limit]


def _cell(tag: str, text: str, right: bool) -> str:
    kind = ' class="number"' if right else ""
    return f"<{tag}{kind}>{html.escape(text)}</{tag}>"


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float | np.number) and not isinstance(value, bool))


def _shown(value: object) -> str:
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return "n/a"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:.3f}"
    return str(value)
