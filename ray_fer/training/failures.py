"""What of the errors on a rank a restart may mend, and how the others end a run at once, with their reason.

A rank that was killed, a node that went, a network or a store that did not answer: Ray Train starts the ranks anew from
the last checkpoint, up to ``max_failures`` times. Anything else, as an error in a method, a batch that a layer refuses,
a full disk or too little memory, would only happen again.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Mapping
from typing import Any

from ray.train import TrainingFailedError, UserCallback

from ray_fer.errors import UserError, explained, is_lasting, one_line

# Those of a store, of the network and of Ray itself, unless they are subclasses of Python's own.
_TRANSIENT_PACKAGES = {"aiobotocore", "aiohttp", "botocore", "grpc", "ray", "urllib3"}
_COMMUNICATION = ("gloo", "nccl", "cuda error", "connection closed", "connection reset", "timed out", "socket")
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


class LastingError(Exception):
    """An error on a rank that no restart mends.

    Args:
        line: what it says.
        mendable: whether the user can mend it.
        details: the traceback of one that the user cannot mend.
    """

    def __init__(self, line: str, mendable: bool, details: str = "") -> None:
        super().__init__(line, mendable, details)
        self.line, self.mendable, self.details = line, mendable, details

    def __str__(self) -> str:
        return self.line


class StopAtOnce(UserCallback):
    """Ends a run of Ray Train when a rank has raised a `LastingError`, instead of starting its ranks again."""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Called in the controller with the errors of the ranks that have failed."""
        for error in worker_exceptions.values():
            if isinstance(error, LastingError):
                raise error


def lasting(error: Exception, rank: int) -> LastingError | None:
    """``error`` as one that ends the run, or None where a restart may mend it."""
    where = f"rank {rank} on {socket.gethostname()}"
    if isinstance(error, UserError):
        return LastingError(str(error), True)
    if _is_out_of_memory(error):
        what = "out of memory; a smaller batch_size or image_size, or checkpoint_activations=true, needs less"
        return LastingError(f"{where}: {what} ({one_line(error)})", True)
    if is_lasting(error):
        status_line = explained(error)
        return LastingError(f"{where}: {status_line[1] if status_line else one_line(error)}", True)
    if _is_transient(error):
        return None
    line = f"{where}: {type(error).__name__}: {one_line(error)}"
    return LastingError(line, False, "".join(traceback.format_exception(error)))


def found_lasting(error: TrainingFailedError) -> LastingError | None:
    """The `LastingError` that has ended a run, if it was one."""
    failures = [getattr(error, "controller_failure", None), *getattr(error, "worker_failures", {}).values()]
    return next((failure for failure in failures if isinstance(failure, LastingError)), None)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    known = isinstance(error, RuntimeError | OSError) and any(phrase in text for phrase in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or known


def _is_transient(error: Exception) -> bool:
    if isinstance(error, OSError | EOFError):
        return True
    if isinstance(error, RuntimeError):
        return not isinstance(error, NotImplementedError | RecursionError) and _is_communication(error)
    python_s_own = (TypeError, ValueError, AssertionError, LookupError, AttributeError, NameError, ImportError)
    return not isinstance(error, python_s_own) and type(error).__module__.split(".")[0] in _TRANSIENT_PACKAGES


def _is_communication(error: RuntimeError) -> bool:
    """Whether it tells of another rank that does not answer, or of a device that failed.

    torch raises the same class for tensors that do not fit; those errors come from deeper than the collectives.
    """
    text = str(error).lower()
    if "device-side assert" in text:
        return False
    if type(error).__module__.startswith(("torch.distributed", "ray.")) or any(word in text for word in _COMMUNICATION):
        return True
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    file = frame.tb_frame.f_code.co_filename if frame is not None else ""
    return "/torch/distributed/" in file or "/deepspeed/comm/" in file
