from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

from ray_fer.evaluation.metrics import evaluate_probs
from ray_fer.reports.evaluation import METRIC_FIGURES, evaluation_figures, evaluation_report, metric_figures
from tests.reports.test_page import Page

HOSTILE = "<script>alert(\"1\")</script> & 'x' $\\frac$"
CLASSES = ["neutral", HOSTILE, "contempt"]


def example(n: int = 60) -> tuple[dict[str, object], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([4, 1, 0.001], n).astype(np.float32)
    labels = rng.integers(-1, 2, n)
    return evaluate_probs(probs, labels, CLASSES), probs, labels


def test_an_evaluation_is_one_self_contained_page() -> None:
    metrics, probs, labels = example()
    figures = evaluation_figures(metrics, probs, labels)
    known = ["confusion_matrix", "per_class_f1", "reliability", "class_mix", "coverage"]
    assert [name for name in figures if name in known] == known
    page = evaluation_report(metrics, model=HOSTILE, data="s3://b/v.csv", figures=figures)
    assert len(page) < 2_000_000
    assert "http" not in page
    seen = Page(page)
    assert {tag for tag, _ in seen.tags}.isdisjoint({"script", "link", "iframe", "a"})
    sources = [attributes["src"] for tag, attributes in seen.tags if tag == "img"]
    pictures = [base64.b64decode(str(source).removeprefix("data:image/png;base64,")) for source in sources]
    assert pictures == list(figures.values())
    for picture in pictures:
        Image.open(io.BytesIO(picture)).verify()
    assert HOSTILE in seen.words, "names are shown as they are"
    assert not re.search(r"url\(|@import|\bnan\b", page, re.IGNORECASE)


def test_a_page_of_metrics_alone_draws_what_they_allow() -> None:
    metrics, _, _ = example()
    page = Page(evaluation_report(metrics, model="m", data="d", figures=metric_figures(metrics)))
    assert sum(tag == "img" for tag, _ in page.tags) == len(METRIC_FIGURES) >= 3


def test_a_page_of_nothing_says_so() -> None:
    probs, labels = np.empty((0, 3)), np.empty(0)
    metrics = evaluate_probs(probs, labels, CLASSES)
    page = Page(evaluation_report(metrics, model="m", data="d", figures=evaluation_figures(metrics, probs, labels)))
    assert page.words.count("n/a") == 5 + 3 * 3


def test_the_most_frequent_confusions_come_first() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 2]
    predictions = [0, 1, 1, 2, 0, 1, 1, 2]
    metrics = evaluate_probs(np.eye(3)[predictions], labels, ["a", "b", "c"])
    page = evaluation_report(metrics, model="m", data="d", figures={})
    rows = re.findall(r"<tr>(.*?)</tr>", page[page.index("Most frequent confusions") :])
    cells = [re.findall(r">([^<]+)</t[dh]>", row) for row in rows]
    assert cells[1:] == [["a", "b", "2", "0.500"], ["a", "c", "1", "0.250"], ["b", "a", "1", "0.333"]]
