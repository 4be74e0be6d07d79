"""A newcomer's afternoon: every job line of README.md and docs/ in its order, on drawn faces, S3 and a cluster."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import ROOT, Command, commands
from tests.system.jobs import HUNG
from tests.system.servers import running_s3
from tests.system.test_cluster import Head, running_head

_HERE = ("device=cpu", "workers=1")
_BACKBONE = ("backbone=test_efficientnet", "epochs=1", "batch_size=32")
SMALLER = {
    "draw_faces": (
        "image_size=32",
        "labeled=80",
        "val=80",
        "test=40",
        "unlabeled=[40,40]",
        "clips=9",
        "clip_frames=20",
    ),
    "train_backbone": (*_BACKBONE, *_HERE),
    "pseudo_label": _HERE,
    "train_head": ("steps=20", *_HERE),
    # One epoch makes no teacher that is sure of anything.
    "select_pseudo_labels": ("selection.threshold=0.15",),
    "self_train": ("train={backbone: test_efficientnet, epochs: 1}", "selection={threshold: 0.15}", "rounds=1", *_HERE),
    "extract_features": _HERE,
    "train_temporal": ("epochs=1", "window=8", "stride=4", *_HERE),
}
"""What is added to a line, for its job, so that all of them take minutes."""
LINES = [command for command in commands() if command.job and command.runs and "help" not in command.words]


@dataclass(frozen=True)
class Place:
    """A checkout's files in a folder of their own, and the environment of a shell in it."""

    folder: Path
    environment: dict[str, str]

    def run(self, command: Command) -> dict[str, Any]:
        """Runs a line and returns the summary that its job ends with."""
        assert command.job is not None
        line = f"{command.text} {shlex.join(SMALLER.get(command.job[0], ()))}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=HUNG
        )
        assert done.returncode == 0, f"{command.file}: {line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        (summary,) = (json.loads(text) for text in done.stdout.splitlines() if text.startswith('{"job"'))
        return dict(summary)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With a cluster that the lines find, and an S3 server that has a bucket called faces."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("jobs", "conf", "ray_fer", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with running_s3(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        with running_head() as head:
            yield Place(folder, _environment(head))


def _environment(head: Head) -> dict[str, str]:
    return head.environment() | {"RAY_ADDRESS": head.address, "RAY_API_SERVER_ADDRESS": head.dashboard}


def _upload(folder: Path) -> None:
    """What the lines expect in s3://faces: the drawn faces, crops, and the teacher."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    store.mkdir("faces")
    store.put(f"{folder / 'faces'}/", "faces/", recursive=True)
    store.put(f"{folder / 'faces' / 'bucket-a'}/", "faces/crops/", recursive=True)
    store.put(f"{folder / 'models' / 'teacher'}/", "faces/models/teacher/", recursive=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_lines_of_the_documentation(place: Place) -> None:
    on_cluster = [command for command in LINES if command.words[0] == "ray"]
    assert len(on_cluster) >= 2
    uploaded = False
    summaries: dict[str, dict[str, Any]] = {}
    for command in LINES:
        if command in on_cluster and not uploaded:
            _upload(place.folder)
            uploaded = True
        summaries[command.text] = place.run(command)
    assert {summary["job"] for summary in summaries.values()} == {command.job[0] for command in LINES if command.job}
    (labelled,) = (
        summary["labelled"]
        for text, summary in summaries.items()
        if text.startswith("ray job submit") and "labelled" in summary
    )
    assert labelled == 40
    assert os.listdir(place.folder / "videos")
