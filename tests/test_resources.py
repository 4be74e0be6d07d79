"""What jobs ask for on clusters that stand at any number of GPUs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_fer import cluster, resources
from ray_fer.jobs.evaluate import evaluate
from ray_fer.jobs.extract_features import extract_features
from ray_fer.jobs.predict_video import predict_video
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.jobs.self_train import self_train
from ray_fer.jobs.train_backbone import train_backbone
from ray_fer.jobs.train_temporal import train_temporal
from ray_fer.resources import choose_device, extractors, ranks
from tests.images import tiny_model
from tests.system.jobs import refusal

HEAD = {"CPU": 0.0, "node:1": 1.0}
GPU_NODE = {"CPU": 16.0, "GPU": 1.0}
CPU_NODE = {"CPU": 8.0}


@pytest.mark.parametrize(
    ("asked", "gpus", "cpus", "local", "device", "said"),
    [
        ("cuda", 0, 0, False, "cuda", "no GPU yet; waiting until its autoscaler"),
        ("cuda", 2, 8, False, "cuda", None),
        ("cuda", 2, 8, True, "cuda", None),
        ("auto", 2, 8, True, "cuda", None),
        ("auto", 0, 8, True, "cpu", None),
        ("auto", 0, 8, False, "cpu", "no GPU now; computing on CPUs"),
        ("auto", 0, 0, False, "cpu", "neither GPU nor CPU for work now, and is asked for CPUs"),
        ("cpu", 2, 8, False, "cpu", None),
        ("cpu", 0, 0, False, "cpu", None),
    ],
)
def test_where_a_job_computes(asked: Any, gpus: int, cpus: int, local: bool, device: str, said: str | None) -> None:
    found, line = choose_device(asked, gpus, cpus, local)
    assert found == device
    assert (line is None) == (said is None)
    assert said is None or said in str(line)


@pytest.mark.parametrize(
    ("device", "workers", "nodes", "count", "share"),
    [
        ("cuda", 8, [HEAD], 8, {"GPU": 1, "CPU": 1}),
        ("cuda", None, [HEAD], 1, {"GPU": 1, "CPU": 1}),
        ("cuda", None, [], 1, {"GPU": 1, "CPU": 1}),
        ("cuda", None, [HEAD, GPU_NODE, GPU_NODE], 2, {"GPU": 1, "CPU": 8}),
        ("cuda", 3, [{"CPU": 6, "GPU": 4}], 3, {"GPU": 1, "CPU": 1}),
        ("cpu", 4, [HEAD], 4, {"CPU": 1}),
        ("cpu", None, [HEAD, CPU_NODE], 1, {"CPU": 8}),
        ("cpu", 2, [CPU_NODE], 2, {"CPU": 4}),
        ("cpu", 2, [GPU_NODE], 2, {"CPU": 8}),
    ],
)
def test_what_ranks_take(device: str, workers: int | None, nodes: Any, count: int, share: dict[str, float]) -> None:
    assert ranks(device, workers, nodes) == (count, share)


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "cpus", "count", "share"),
    [
        ("cuda", 8, 0, 0, 8, {"num_cpus": 1, "num_gpus": 1}),
        ("cuda", None, 0, 4, 1, {"num_cpus": 1, "num_gpus": 1}),
        ("cuda", None, 2, 8, 8, {"num_cpus": 1, "num_gpus": 1 / 4}),
        ("cuda", None, 1, 64, 8, {"num_cpus": 1, "num_gpus": 1 / 8}),
        ("cpu", None, 2, 6, 6, {"num_cpus": 1}),
        ("cpu", None, 0, 0, 1, {"num_cpus": 1}),
        ("cpu", 3, 0, 6, 3, {"num_cpus": 1}),
    ],
)
def test_what_extractors_take(
    device: str, workers: int | None, gpus: int, cpus: int, count: int, share: dict[str, float]
) -> None:
    assert extractors(device, workers, gpus, cpus) == (count, share)


def test_a_cluster_that_stands_at_zero_is_asked_for_gpus(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray_fer.training import runner

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cluster, "accelerators", lambda: 0)
    monkeypatch.setattr(cluster, "cpus", lambda: 0)
    monkeypatch.setattr(cluster, "is_local", lambda: False)
    monkeypatch.setattr(runner.ray, "nodes", lambda: [{"Alive": True, "Resources": HEAD}])
    scaling = runner._scaling(resources.find_device("cuda"), 8)
    assert (scaling.num_workers, scaling.use_gpu, scaling.resources_per_worker) == (8, True, {"GPU": 1, "CPU": 1})
    assert ["waiting until its autoscaler" in record.getMessage() for record in caplog.records] == [True]
    scaling = runner._scaling(resources.find_device("auto"), None)
    assert (scaling.num_workers, scaling.use_gpu, scaling.resources_per_worker) == (1, False, {"CPU": 1})


@pytest.mark.parametrize(
    ("name", "job", "arguments"),
    [
        ("train_backbone", train_backbone, ["labeled=a", "val=b", "out=c"]),
        ("train_temporal", train_temporal, ["features=a", "val=b", "out=c"]),
        ("extract_features", extract_features, ["data=a", "model=b", "out=c"]),
        ("pseudo_label", pseudo_label, ["source=a", "table=c"]),
        ("self_train", self_train, ["labeled=a", "val=b", "source=c", "out=d"]),
        ("evaluate", evaluate, ["data=a", "out=c"]),
        ("predict_video", predict_video, ["source=a", "model=b", "out=c"]),
    ],
)
def test_a_machine_without_a_gpu_says_so(
    name: str, job: Callable[[Any], Any], arguments: list[str], tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "gpus_here", lambda: 0)
    monkeypatch.setattr(cluster, "_nobody_is_there", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if key := {"evaluate": "model", "pseudo_label": "teacher"}.get(name):
        arguments = [*arguments, f"{key}={tiny_model(str(tmp_path / 'model'), image_size=32).uri}"]
    message = refusal(name, job, [*arguments, "device=cuda"], caplog)
    assert message in (
        "device=cuda: Ray finds no GPU on this machine",
        "device=cuda: torch finds no GPU on this machine",
    )
