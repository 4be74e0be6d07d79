"""Connecting to Ray: the cluster that is there, or one in this process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings

import ray

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
    """Connects once: to ``RAY_ADDRESS`` or a running local cluster, else starts Ray in this process."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray announces defaults that will change; nothing here relies on them.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    # Ray 2.60 announces on every start that it guards a cluster in this process by a token.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # Its C++ side warns of constructor arguments in the object store: ours are a few URIs, owned by the driver.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    variables = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    alone = _nobody_is_there()
    ray.init(
        address="local" if alone else None,
        # It would take longer to start than to read its page; `ray start --head` is for those who want one.
        include_dashboard=False if alone else None,
        logging_level=logging.WARNING,
        # What the jobs have to say comes back as results; the workers' own lines stay in Ray's log folder.
        log_to_driver=False,
        runtime_env={"env_vars": variables} if variables else None,
    )
    logging.getLogger("ray").setLevel(logging.WARNING)
    # Ray's own handler would exit before a job has committed what is done.
    interrupt_on_sigterm()


def interrupt_on_sigterm() -> None:
    """Lets SIGTERM be a KeyboardInterrupt, as far as this is the main thread's to decide."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def connect_unless_alone() -> None:
    """Connects to a cluster that is there; starts Ray in this process only where that finds a GPU."""
    if ray.is_initialized() or not _nobody_is_there() or _gpus_here():
        connect()
    else:
        interrupt_on_sigterm()


def _gpus_here() -> int:
    manager = ray._private.accelerators.get_accelerator_manager_for_resource("GPU")
    return manager.get_current_node_num_accelerators() if manager else 0


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
    named = os.environ.get("RAY_ADDRESS")
    if named:
        return named == "local"
    address: str | None = ray._private.services.find_bootstrap_address(None)
    if address is None:
        return True
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:  # Ray itself would wait for minutes for a cluster that was killed
        log.info("the Ray cluster at %s is gone: starting Ray in this process", address)
        return True
    return False


def is_local() -> bool:
    """Whether `connect` started Ray in this process or would do so: nobody will ever add a node."""
    if not ray.is_initialized():
        return _nobody_is_there()
    node = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def accelerators() -> int:
    """GPUs of the connected cluster as it stands, or of this machine."""
    if not ray.is_initialized():
        return _gpus_here()
    return int(ray.cluster_resources().get("GPU", 0))


def cpus() -> int:
    """CPU slots of the connected cluster as it stands, or of this machine."""
    if not ray.is_initialized():
        return int(ray._private.utils.get_num_cpus())
    return int(ray.cluster_resources().get("CPU", 1))
