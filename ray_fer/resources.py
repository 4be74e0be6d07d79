"""What a job asks a cluster for, from its ``device`` and ``workers`` and from what the cluster has now."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ray_fer.config import Device
from ray_fer.errors import UserError

log = logging.getLogger(__name__)

_MOST_CPUS_PER_GPU = 8
_MOST_WORKERS_PER_GPU = 8


def choose_device(asked: Device, gpus: int, cpus: int, local: bool) -> tuple[str, str | None]:
    """Where to compute, and what is to be said of it.

    Args:
        asked: ``cuda`` on a cluster without a GPU asks for some and so calls its autoscaler; ``auto`` takes what there
            is now.
        gpus: of the cluster as it stands.
        cpus: likewise.
        local: whether nobody will ever add a node.

    Returns:
        ``cuda`` or ``cpu``, and a line for the log or None.

    Raises:
        UserError: for ``cuda`` where there will never be a GPU.
    """
    if asked == "cuda" and not gpus:
        if local:
            raise UserError("device=cuda: Ray finds no GPU on this machine")
        return "cuda", "device=cuda: the cluster has no GPU yet; waiting until its autoscaler adds one"
    if asked == "auto" and not gpus and not local:
        there = "no GPU now" if cpus else "neither GPU nor CPU for work now, and is asked for CPUs"
        return "cpu", f"device=auto: the cluster has {there}; computing on CPUs (device=cuda waits for GPUs)"
    return ("cuda" if gpus else "cpu") if asked == "auto" else asked, None


def find_device(asked: Device) -> str:
    """`choose_device` on the connected cluster, or before any is connected; says its line.

    Raises:
        UserError: as there.
    """
    from ray_fer import cluster

    device, line = choose_device(asked, cluster.accelerators(), cluster.cpus(), cluster.is_local())
    if line:
        log.warning("%s", line)
    return device


def check_device(asked: Device) -> None:
    """Refuses ``cuda`` where there is neither a GPU nor a cluster, before anything is started.

    Raises:
        UserError: then.
    """
    if asked == "cuda":
        from ray_fer import cluster  # imports Ray

        choose_device(asked, cluster.accelerators(), 1, cluster.is_local())


def device_here(asked: Device) -> str:
    """Where a job that runs in one process computes: ``auto`` is a GPU where torch has one.

    Raises:
        UserError: for ``cuda`` where torch has none.
    """
    import torch

    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UserError("device=cuda: torch finds no GPU on this machine")
    return ("cuda" if there else "cpu") if asked == "auto" else asked


def ranks(device: str, workers: int | None, nodes: Sequence[Mapping[str, float]]) -> tuple[int, dict[str, float]]:
    """How many ranks train, and what each takes of a node.

    Args:
        device: ``cuda`` or ``cpu``.
        workers: None is one per GPU, or one on CPUs and where GPUs have yet to come.
        nodes: what each has, by Ray's names of resources.
    """
    if device == "cuda":
        with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
        # Of nodes that have yet to come only one core is known.
        cpus = min((int(node.get("CPU", 1) // node["GPU"]) for node in with_gpu), default=1)
        gpus = int(sum(node["GPU"] for node in with_gpu))
        return workers or max(1, gpus), {"GPU": 1, "CPU": max(1, min(cpus, _MOST_CPUS_PER_GPU))}
    cpus = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    return workers or 1, {"CPU": max(1, cpus // (workers or 1))}


def extractors(device: str, workers: int | None, gpus: int, cpus: int) -> tuple[int, dict[str, Any]]:
    """How many actors extract features, and what each takes as Ray Data's arguments.

    Args:
        device: ``cuda`` or ``cpu``.
        workers: None is one per core, and of those that share a GPU at most eight.
        gpus: of the cluster as it stands.
        cpus: likewise.
    """
    if device == "cpu":
        return workers or max(1, cpus), {"num_cpus": 1}
    # On a GPU the actors that share it hide each other's decoding, which is the slower half.
    of_gpu = max(1, min(cpus // gpus, _MOST_WORKERS_PER_GPU)) if gpus else 1
    return workers or max(1, gpus * of_gpu), {"num_cpus": 1, "num_gpus": 1 / of_gpu}
