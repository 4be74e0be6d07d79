"""The device and the workers of a job, from its ``device`` and ``workers`` and from what the cluster has now."""

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
    """Chooses the device to compute on.

    Args:
        asked: The value of ``device``. ``cuda`` on a cluster without a GPU asks its autoscaler for one; ``auto`` takes
            what the cluster has now.
        gpus: The number of GPUs that the cluster has now.
        cpus: The number of CPUs that the cluster has now.
        local: Whether Ray runs on this machine alone, so that no node will be added.

    Returns:
        ``cuda`` or ``cpu``, and a message for the log or None.

    Raises:
        UserError: If ``cuda`` is asked for and there will never be a GPU.
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
    """Applies `choose_device` to the connected cluster, or to this machine before one is connected; logs its message.

    Raises:
        UserError: If ``cuda`` is asked for and there will never be a GPU.
    """
    from ray_fer import cluster

    device, line = choose_device(asked, cluster.accelerators(), cluster.cpus(), cluster.is_local())
    if line:
        log.warning("%s", line)
    return device


def check_device(asked: Device) -> None:
    """Checks the device before anything is started.

    Raises:
        UserError: If ``cuda`` is asked for and there is neither a GPU nor a cluster.
    """
    if asked == "cuda":
        from ray_fer import cluster  # imports Ray

        choose_device(asked, cluster.accelerators(), 1, cluster.is_local())


def device_here(asked: Device) -> str:
    """The device of a job that runs in one process: ``auto`` is a GPU if torch finds one.

    Raises:
        UserError: If ``cuda`` is asked for and torch finds no GPU.
    """
    import torch

    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UserError("device=cuda: torch finds no GPU on this machine")
    return ("cuda" if there else "cpu") if asked == "auto" else asked


def ranks(device: str, workers: int | None, nodes: Sequence[Mapping[str, float]]) -> tuple[int, dict[str, float]]:
    """The number of ranks that train, and the resources that each takes of a node, by Ray's names.

    Args:
        device: ``cuda`` or ``cpu``.
        workers: The number of ranks; None is one per GPU, or one on CPUs and while the cluster has no GPU yet.
        nodes: The resources of every node, by Ray's names.
    """
    if device == "cuda":
        with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
        # Nodes that the autoscaler has yet to add have at least one core.
        cpus = min((int(node.get("CPU", 1) // node["GPU"]) for node in with_gpu), default=1)
        gpus = int(sum(node["GPU"] for node in with_gpu))
        return workers or max(1, gpus), {"GPU": 1, "CPU": max(1, min(cpus, _MOST_CPUS_PER_GPU))}
    cpus = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    return workers or 1, {"CPU": max(1, cpus // (workers or 1))}


def extractors(device: str, workers: int | None, gpus: int, cpus: int) -> tuple[int, dict[str, Any]]:
    """The number of actors that extract features, and their resources as arguments of Ray Data.

    Args:
        device: ``cuda`` or ``cpu``.
        workers: The number of actors; None is one per core, and on GPUs at most eight per GPU.
        gpus: The number of GPUs that the cluster has now.
        cpus: The number of CPUs that the cluster has now.
    """
    if device == "cpu":
        return workers or max(1, cpus), {"num_cpus": 1}
    # Decoding is slower than the net on a GPU, so several actors share it and decode in turn.
    of_gpu = max(1, min(cpus // gpus, _MOST_WORKERS_PER_GPU)) if gpus else 1
    return workers or max(1, gpus * of_gpu), {"num_cpus": 1, "num_gpus": 1 / of_gpu}
