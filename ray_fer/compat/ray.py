"""Private names of Ray, and what its processes do that no public setting governs. Checked against `CHECKED`."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from ray.data._internal.execution.execution_callback import ExecutionCallback as ExecutionCallback
    from ray.data._internal.execution.streaming_executor import StreamingExecutor as StreamingExecutor
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback as WorkerGroupCallback

CHECKED = "2.60.0"
# What Ray's head answers to, among its gRPC services.
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"
LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
# The thread of Ray Data behind a stream of batches that asks for blocks.
BATCH_THREAD = "iter_threaded"
_THREAD_SECONDS = 30.0
# Ray Data and Ray Train take a second to import, and a labelling run in one process needs neither.
_LAZY = {
    "ExecutionCallback": "ray.data._internal.execution.execution_callback",
    "StreamingExecutor": "ray.data._internal.execution.streaming_executor",
    "WorkerGroupCallback": "ray.train.v2._internal.execution.callback",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Keeps Ray from announcing what concerns nobody here while the block starts or joins a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray announces defaults that will change; nothing here relies on them.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    # Ray announces on every start that it guards a cluster in this process by a token.
    logging.getLogger(TOKEN_LOGGER).setLevel(logging.ERROR)
    # Its C++ side warns of constructor arguments in the object store: ours are a few URIs, owned by the driver.
    os.environ.setdefault(LOG_LEVEL, "fatal")
    # The C++ side announces this variable before it has any setting.
    with without_lines(LOG_LEVEL.encode()):
        yield


@contextmanager
def without_lines(part: bytes) -> Iterator[None]:
    """Drops the lines that contain ``part`` from what this process writes to standard error while the block runs.

    All other lines are forwarded at once. Processes that the block starts and that outlive it keep writing through the
    same pipe, and their lines are forwarded and dropped in the same way.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)

    def forward() -> None:
        with open(reader, "rb", buffering=0) as pipe, open(kept, "wb", buffering=0) as target:
            rest = b""
            while piece := pipe.read(1 << 16):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if part not in line:
                        target.write(line + b"\n")
            target.write(rest)

    thread = threading.Thread(target=forward, name="stderr", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        # The thread closes the pipe when all processes that the block started have ended, which may be much later.
        thread.join(0.2)


def running_address() -> str | None:
    """Returns HOST:PORT of the cluster that `ray start` has left on this machine, which may be gone; None if none."""
    address: str | None = ray._private.services.find_bootstrap_address(None)
    return address


def gpus_here() -> int:
    """Returns the number of GPUs of this machine, without a cluster."""
    manager = ray._private.accelerators.get_accelerator_manager_for_resource("GPU")
    return manager.get_current_node_num_accelerators() if manager else 0


def cpus_here() -> int:
    """Returns the number of CPU slots that Ray would give this machine, without a cluster."""
    return int(ray._private.utils.get_num_cpus())


def started_here() -> bool:
    """Returns whether the connected cluster's head is of this process."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def join_data_threads() -> None:
    """Waits for Ray Data's threads to end: one that asks a Ray that is gone makes the process exit with 1."""
    executor = __getattr__("StreamingExecutor")
    for thread in threading.enumerate():
        if isinstance(thread, executor) or thread.name == BATCH_THREAD:
            thread.join(_THREAD_SECONDS)
