"""Connecting to Ray: the cluster that is there, or one in this process."""

from __future__ import annotations

import logging
import os
import warnings

import ray

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
    variables = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    ray.init(logging_level=logging.WARNING, runtime_env={"env_vars": variables} if variables else None)
    logging.getLogger("ray").setLevel(logging.WARNING)


def accelerators() -> int:
    """GPUs of the connected cluster as it stands."""
    return int(ray.cluster_resources().get("GPU", 0))


def cpus() -> int:
    """CPU slots of the connected cluster as it stands."""
    return int(ray.cluster_resources().get("CPU", 1))
