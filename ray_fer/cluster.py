"""Connecting to Ray: the cluster that is there, or one in this process."""

from __future__ import annotations

import logging
import os
import re
import socket
from pathlib import Path

import ray

from ray_fer import interruption
from ray_fer.compat.ray import CHECK_ALIVE, cpus_here, gpus_here, quiet_start, running_address, started_here
from ray_fer.errors import UserError, one_line
from ray_fer.room import Demand, Patience, check_room

_PROBE_SECONDS = 3.0

log = logging.getLogger(__name__)

# Without a limit, Ray Data replaces actors that die while they start for ever.
_MAX_ACTOR_INIT_DEATHS = 8

# Settings that workers need and that are no secrets. Credentials are not forwarded: a runtime environment is shown in
# the dashboard. On a cluster they come from the nodes' roles or environment.
_FORWARDED = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "DS_ACCELERATOR",
)


def connect() -> None:
    """Connects once: to ``RAY_ADDRESS`` or a running local cluster, else starts Ray in this process.

    Raises:
        UserError: when nothing that Ray can use is at the address, or when Ray cannot start here.
    """
    if ray.is_initialized():
        return
    variables = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    address = _address()
    try:
        with quiet_start():
            ray.init(
                address=address or "local",
                # It would take longer to start than to read its page; `ray start --head` is for those who want one.
                include_dashboard=None if address else False,
                logging_level=logging.WARNING,
                # What the jobs have to say comes back as results; the workers' own lines stay in Ray's log folder.
                log_to_driver=False,
                runtime_env={"env_vars": variables} if variables else None,
            )
    except SystemExit:  # what Ray makes of a SIGTERM meanwhile
        raise KeyboardInterrupt from None
    except Exception as error:
        ray.shutdown()
        raise UserError(_why_not(address, error)) from None
    finally:
        # Ray's own handler would exit before a job has committed what is done.
        interruption.reinstall()
    logging.getLogger("ray").setLevel(logging.WARNING)


def _why_not(address: str | None, error: Exception) -> str:
    if address:
        return f"the Ray cluster at {address} cannot be joined: {one_line(error)}"
    if isinstance(error, OSError):
        temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        needs = f"it writes to {temporary} (RAY_TMPDIR names another, short, folder) and to {Path.home()}/.ray"
        return f"Ray cannot start on this machine: {one_line(error)}; {needs}"
    return f"Ray cannot start on this machine: {one_line(error)}"


def _address() -> str | None:
    """Of the cluster to join, found to answer; None: Ray is to be started here.

    Raises:
        UserError: when ``RAY_ADDRESS`` names something else than a cluster that answers.
    """
    if _nobody_is_there():
        return None
    named = _named()
    if named in (None, "auto"):
        found = running_address()
        if found is None:
            raise UserError(
                "RAY_ADDRESS=auto: no Ray cluster runs on this machine; start one by `ray start --head`, or unset "
                "RAY_ADDRESS"
            )
        named, given = found, "RAY_ADDRESS=auto: the Ray cluster at " + found
    else:
        assert named is not None
        given = f"RAY_ADDRESS={named}"
    scheme, _, rest = named.rpartition("://")
    if scheme in ("http", "https"):
        raise UserError(
            f"{given}: this is where jobs are submitted: `ray job submit --working-dir . -- python jobs/NAME.py …`, "
            "or unset RAY_ADDRESS to run here"
        )
    if scheme:
        raise UserError(
            f"{given}: jobs cannot run through {scheme}://; `ray job submit` runs them on the cluster, on whose nodes "
            "RAY_ADDRESS=auto finds it"
        )
    if not re.fullmatch(r".+:[0-9]{1,5}", rest):
        raise UserError(f"{given}: not HOST:PORT, auto or local")
    if problem := _probe(rest):
        raise UserError(f"{given}: {problem}; start Ray there, correct the address, or unset RAY_ADDRESS to run here")
    return named


def _probe(address: str) -> str | None:
    """Why there is no Ray at HOST:PORT, or None: Ray itself would try for minutes and then end the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: for no name of a host
        return f"nothing answers there ({one_line(error)})"
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return None
    import grpc

    # A proxy in the environment is not for the cluster.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(CHECK_ALIVE)(b"", timeout=_PROBE_SECONDS)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAUTHENTICATED:  # it wants a token, which Ray knows where to find
                return f"what answers there is not the head of a Ray cluster ({error.code().name.lower()})"
    return None


def _named() -> str | None:
    return os.environ.get("RAY_ADDRESS", "").strip() or None


def connect_unless_alone() -> None:
    """Connects to a cluster that is there; starts Ray in this process only where that finds a GPU."""
    if ray.is_initialized() or not _nobody_is_there() or gpus_here():
        connect()
    else:
        interruption.reinstall()


def prepare_data() -> None:
    """Sets Ray Data up for a job, which has a progress line of its own."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A listing may go on for an hour without a new object, and an autoscaler may wait as long for a node.
    context.execution_no_progress_timeout_s = -1
    context.max_consecutive_actor_init_deaths = _MAX_ACTOR_INIT_DEATHS
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _nobody_is_there() -> bool:
    """Whether Ray has to be started here: no cluster is named, or the one that `ray start` left behind is gone."""
    if named := _named():
        return named == "local"
    address = running_address()
    if address is None:
        return True
    if _probe(address) is None:
        return False
    log.info("the Ray cluster at %s is gone: starting Ray in this process", address)
    return True


def is_local() -> bool:
    """Whether `connect` started Ray in this process or would do so: nobody will ever add a node."""
    if not ray.is_initialized():
        return _nobody_is_there()
    return started_here()


def nodes() -> list[dict[str, float]]:
    """What each node of the connected cluster has, by Ray's names of resources."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def describe() -> tuple[list[dict[str, float]], dict[str, float]]:
    """`nodes`, and what of them nothing uses, in all."""
    return nodes(), ray.available_resources()


def wait_for_room(demand: Demand, minutes: float | None) -> None:
    """Waits until a cluster has room for ``demand``, and says every half minute what is there.

    A placement group asks for it, which an autoscaler answers; it is gone again when this returns.

    Raises:
        UserError: after ``minutes``, or at once where Ray was started in this process and is too small.
    """
    if is_local():
        check_room(demand, nodes())
        return
    patience = Patience(demand, minutes)
    group = ray.util.placement_group([dict(demand.share)] * demand.count)
    try:
        while not group.wait(timeout_seconds=1):
            if line := patience.look(describe):
                log.info("%s", line)
    finally:
        ray.util.remove_placement_group(group)


def accelerators() -> int:
    """GPUs of the connected cluster as it stands, or of this machine."""
    if not ray.is_initialized():
        return gpus_here()
    return int(ray.cluster_resources().get("GPU", 0))


def cpus() -> int:
    """CPU slots of the connected cluster as it stands, or of this machine."""
    if not ray.is_initialized():
        return cpus_here()
    return int(ray.cluster_resources().get("CPU", 1))
