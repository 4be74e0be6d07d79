"""The whole of ray-fer on faces that it draws itself: `make demo`, or `python examples/demo.py FOLDER`.

Runs the jobs as anybody would, all on one Ray, and ends with one page. Interrupted, the same command goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import ray

from ray_fer import cluster
from ray_fer.reports.evaluation import CAPTIONS
from ray_fer.reports.page import Report

ROOT = Path(__file__).parents[1]
# A backbone that trains in a minute on two cores.
TRAIN = "{backbone: test_efficientnet, batch_size: 32, learning_rate: 1.0e-2, ema_decay: 0.98, epochs: 25}"
STUDENT = "{init: teacher, epochs: 8}"
SELECTION = "{rule: threshold, threshold: 0.5}"


def main(out: Path) -> None:
    """Draws faces, runs the loop bucket after bucket, trains the temporal encoder, writes the page."""
    started = time.monotonic()
    cluster.connect()
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    faces, loop, clips = out / "faces", out / "loop", out / "clips"
    if not (faces / "labeled.csv").exists():
        job("draw_faces", f"out={faces}", "image_size=48", "difficulty=0.2", "clips=36", "clip_frames=40")
    study = (
        *(f"labeled={faces / 'labeled.csv'}", f"val={faces / 'val.csv'}", f"out={loop}"),
        *(f"train={TRAIN}", f"student={STUDENT}", f"selection={SELECTION}", "label={workers: 1}"),
    )
    buckets = [str(faces / "bucket-a"), str(faces / "bucket-b")]
    job("self_train", *study, f"source=[{buckets[0]}]", "rounds=1")
    teacher, temporal = str(loop / "teacher"), str(clips / "temporal")
    # The second bucket has arrived. What does not need each other runs side by side: starting takes most of the time.
    summary, teacher_scores = together(
        lambda: job("self_train", *study, f"source=[{','.join(buckets)}]", "rounds=2"),
        lambda: evaluate(out / "test-teacher", teacher, faces / "test.csv"),
    )
    best = summary["model"]
    together(
        lambda: extract(clips / "train", best, faces / "clips-train.csv"),
        lambda: extract(clips / "val", best, faces / "clips-val.csv"),
    )
    _, best_scores = together(
        lambda: job(
            "train_temporal", f"features={clips / 'train'}", f"val={clips / 'val'}", f"out={temporal}", "epochs=30"
        ),
        lambda: evaluate(out / "test-best", best, faces / "test.csv"),
    )
    paths = pl.read_csv(faces / "clips-test.csv")["path"].unique(maintain_order=True)
    source = f"source=[{','.join(str(faces / path) for path in paths[:2])}]"
    videos, _ = together(
        lambda: evaluate(out / "test-clips", temporal, faces / "clips-test.csv"),
        lambda: job("predict_video", source, f"model={temporal}", f"out={out / 'videos'}"),
    )
    page = report(out, teacher_scores, best_scores, videos, summary, time.monotonic() - started)
    (out / "report.html").write_text(page)
    print(f"\nOpen {out / 'report.html'}", file=sys.stderr)


def job(name: str, *arguments: str) -> dict[str, Any]:
    """Runs a job and returns its summary; its progress goes to stderr."""
    print(f"\n$ python jobs/{name}.py {' '.join(arguments)}", file=sys.stderr)
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def together(*calls: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """Makes calls at the same time; their results in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def evaluate(out: Path, model: str, data: Path) -> dict[str, Any]:
    """The metrics of ``model`` on ``data``."""
    job("evaluate", f"model={model}", f"data={data}", f"out={out}")
    return dict(json.loads((out / "metrics.json").read_text()))


def extract(out: Path, model: str, data: Path) -> dict[str, Any]:
    """The features of the frames of the clips in ``data``."""
    return job("extract_features", f"data={data}", f"model={model}", f"out={out}", "workers=1")


def report(
    out: Path,
    teacher: Mapping[str, Any],
    best: Mapping[str, Any],
    videos: Mapping[str, Any],
    loop: Mapping[str, Any],
    seconds: float,
) -> str:
    """The page: before and after on the test set, the pseudo-labels against the truth, the videos."""
    page = Report("ray-fer on drawn faces", f"from nothing to this page in {seconds:.0f} seconds")
    page.key_numbers(
        {
            "test macro-F1, teacher": teacher["macro_f1"],
            "test macro-F1, best model": best["macro_f1"],
            "clips macro-F1, frame by frame": videos["frame_macro_f1"],
            "frames smoothed": videos["frame_smoothed_macro_f1"],
            "temporal encoder": videos["macro_f1"],
        }
    )
    page.text(
        "A few labelled faces train the teacher; it labels two buckets of unlabeled ones, of which the second arrives "
        "after the first round; students learn from labels and pseudo-labels. The test set served only this page."
    )
    page.section("F1 of each class on the test set").table(
        ["class", "examples", "teacher", "best model"],
        [
            [name, row["support"], teacher["per_class"][name]["f1"], row["f1"]]
            for name, row in best["per_class"].items()
        ],
    )
    for name in ("teacher", "best"):
        png = (out / f"test-{name}" / "confusion_matrix.png").read_bytes()
        page.figure(png, f"{name}. {CAPTIONS['confusion_matrix']}")
    page.section("Pseudo-labels against the truth", "The renderer knows what it drew; the loop never saw it.")
    page.table(["round", "bucket", "faces", "accepted", "right among the accepted"], pseudo_label_accuracy(out, loop))
    page.section("Videos", "Clips of people in no other set, with the temporal encoder's answer for every frame.")
    for png in sorted((out / "videos").rglob("*.png"))[:3]:
        page.figure(png.read_bytes(), png.stem)
    page.section(
        "More", "loop/report.html (rounds, pseudo-labels, feedback), test-best/report.html, test-clips/report.html"
    )
    return page.html()


def pseudo_label_accuracy(out: Path, loop: Mapping[str, Any]) -> list[list[object]]:
    """For every round and bucket: faces, accepted pseudo-labels, and the share of them that is right."""
    rows: list[list[object]] = []
    for number in range(1, len(loop["rounds"]) + 1):
        selection = pl.read_parquet(out / "loop" / f"round-{number}" / "selection" / "selection.parquet")
        for file in sorted((out / "faces").glob("bucket-*.truth.csv"))[:number]:
            truth = pl.read_csv(file).with_columns(uri=pl.lit(f"{(out / 'faces').resolve()}/") + pl.col("path"))
            accepted = selection.join(truth, on="uri", suffix="_true")
            right = (accepted["label"] == accepted["label_true"]).mean() if len(accepted) else None
            rows.append([number, file.name.partition(".")[0], len(truth), len(accepted), right])
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out"))
