from __future__ import annotations

import errno
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.train import ControllerError, WorkerGroupError

from ray_fer.errors import UserError
from ray_fer.training.failures import LastingError, StopAtOnce, found_lasting, lasting


def raised(function: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return caught.value


class TheirOwnError(Exception):
    """As a recipe may define one."""


def their_collective() -> None:
    """Raises what gloo raises when the other rank has gone, from within torch's collectives."""
    code = compile("def wait(): raise RuntimeError('peer')\nwait()", "/x/torch/distributed/distributed_c10d.py", "exec")
    exec(code, {})


@pytest.mark.parametrize(
    ("error", "mendable", "said"),
    [
        (UserError("labeled=x: no such file"), True, "labeled=x: no such file"),
        (OSError(errno.ENOSPC, "No space left on device", "/o/w"), True, "/o/w: no space left on device"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True, "No space left on device"),
        (PermissionError("Access Denied"), True, "Access Denied"),
        (MemoryError(), True, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, "smaller batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True, "smaller batch_size"),
        (ValueError("Expected more than 1 value\nper channel"), False, "ValueError: Expected more than 1 value per"),
        (TypeError("x"), False, "TypeError: x"),
        (AssertionError(), False, "AssertionError"),
        (KeyError("x"), False, "KeyError"),
        (ZeroDivisionError("x"), False, "ZeroDivisionError"),
        (NotImplementedError("connection closed"), False, "NotImplementedError"),
        (TheirOwnError("theirs"), False, "TheirOwnError: theirs"),
        (raised(lambda: torch.ones(2, 3) @ torch.ones(2, 3)), False, "RuntimeError: mat1 and mat2"),
        (RuntimeError("CUDA error: device-side assert triggered"), False, "device-side assert"),
    ],
)
def test_what_no_restart_mends(error: Exception, mendable: bool, said: str) -> None:
    found = lasting(error, 3)
    assert found is not None
    assert (found.mendable, said in found.line, "\n" in found.line) == (mendable, True, False)
    assert bool(found.details) == (not mendable)
    assert pickle.loads(pickle.dumps(found)).args == found.args


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("peer"),
        TimeoutError("read"),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
        RuntimeError("NCCL error: remote process exited"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        torch.distributed.DistNetworkError("x"),
        raised(their_collective),
    ],
)
def test_what_a_restart_may_mend(error: Exception) -> None:
    assert lasting(error, 0) is None


def test_the_controller_stops_and_the_driver_is_told() -> None:
    context: Any = SimpleNamespace()
    StopAtOnce().after_exception(context, {0: ConnectionResetError("collateral")})
    reason = LastingError("rank 1: no", False, "Traceback")
    with pytest.raises(LastingError, match="rank 1: no"):
        StopAtOnce().after_exception(context, {0: ConnectionResetError("collateral"), 1: reason})
    assert found_lasting(ControllerError(reason)) is reason
    assert found_lasting(WorkerGroupError("x", {0: RuntimeError("collateral"), 1: reason})) is reason
    assert found_lasting(WorkerGroupError("x", {0: RuntimeError("lost")})) is None
