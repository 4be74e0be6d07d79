"""Whose a folder of a training run is, so that the same command again answers or goes on, and another is refused.

A run's identity is what decides its result: its arguments, and digests of what they point at. It is written into the
folder before the first step (``.run/claim.json``) and into the model's provenance after the last. A crash at any moment
therefore leaves a folder that either this command finishes or that says, in one line, what it was started with. That
the same command does not run there twice at the same time is the lease's part (`lease`).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from ray_fer import storage
from ray_fer.config import JobConfig
from ray_fer.data.layouts import normalise_argument
from ray_fer.documents import read_document
from ray_fer.errors import UserError
from ray_fer.models.records import Claim, Identity, Provenance
from ray_fer.training.lease import Lease, held

T = TypeVar("T")
Config = TypeVar("Config", bound=JobConfig)
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]

RUN = ".run"
"""The folder, inside the model's, of what exists only while a run lasts."""

_CLAIM = "claim.json"
_PROVENANCE = "provenance.json"
_MODELS = ("config.json", "temporal.json")  # written last: the folder holds a whole model
# A run may go on with another of these: its checkpoints hold the same.
_FREE = {"out", "device", "workers", "zero_stage", "max_failures", "on_bad_loss", "wait_minutes"}
_PACKAGES = ("ray", "torch", "timm", "deepspeed", "numpy", "pyarrow")


def absolute(config: Config, *keys: str) -> Config:
    """``config`` with the URIs under ``keys`` in their one spelling: a worker's current folder may be another.

    Raises:
        UserError: for a URI that cannot be one, naming its key.
    """
    given = {key: uri for key in keys if (uri := getattr(config, key))}
    return config.model_copy(update={key: normalise_argument(key, uri) for key, uri in given.items()})


def identity_of(config: JobConfig, contents: dict[str, str]) -> Identity:
    """What decides the result of a run.

    Args:
        config: of the job.
        contents: digests of what the arguments point at, by argument.
    """
    arguments = {key: value for key, value in config.model_dump().items() if key not in _FREE}
    return {"arguments": arguments, "contents": contents}


def digest(document: Any) -> str:
    """SHA-256 of a JSON-able document, as hex digits."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def is_finished(out: str, identity: Identity, upgrade: Upgrade = dict) -> bool:
    """Whether ``out`` holds the model of this very run.

    Args:
        out: The model's folder.
        identity: Of this run.
        upgrade: Gives the arguments that an earlier version recorded the names of now.

    Raises:
        UserError: when it holds another model.
    """
    if not any(storage.exists(storage.join(out, name)) for name in _MODELS):
        return False
    provenance = storage.join(out, _PROVENANCE)
    document = read_document(provenance, Provenance) if storage.exists(provenance) else {}
    if "identity" not in document:
        raise UserError(f"out={out} holds a model that this job did not train; choose another out")
    _compare(out, "a model trained", document["identity"], identity, upgrade)
    return True


def must_run(out: str, identity: Identity, upgrade: Upgrade = dict) -> bool:
    """Whether there is anything to do in ``out``: its model is not there yet, or what a run leaves still is.

    Raises:
        UserError: as `is_finished`.
    """
    return not is_finished(out, identity, upgrade) or storage.exists(storage.join(out, RUN))


def claim(
    out: str, identity: Identity, start: Callable[[], dict[str, Any]] = dict, upgrade: Upgrade = dict
) -> dict[str, Any]:
    """Marks ``out`` as this run's, or finds the mark of its earlier part.

    Args:
        out: the model's folder.
        identity: of this run.
        start: makes what the run keeps from its first start on, JSON-able; called once, interrupted or not.
        upgrade: As `is_finished` takes it.

    Returns:
        What ``start`` returned then.

    Raises:
        UserError: when another run has begun there.
    """
    uri = storage.join(out, RUN, _CLAIM)
    if storage.exists(uri):
        found = read_document(uri, Claim)
        _compare(out, "an unfinished run", found["identity"], identity, upgrade)
        return dict(found["start"])
    begun = start()
    storage.write_json(uri, {"identity": identity, "start": begun})
    return begun


def complete(
    out: str,
    identity: Identity,
    run: Callable[[dict[str, Any], Lease], T],
    publish: Callable[[dict[str, Any], T], None],
    start: Callable[[], dict[str, Any]] = dict,
    upgrade: Upgrade = dict,
) -> None:
    """Trains and publishes what ``out`` lacks, under its lease, and deletes what a run leaves there.

    Args:
        out: the model's folder.
        identity: of this run.
        run: trains, given what ``start`` returned and the lease.
        publish: writes the model, given what ``start`` and ``run`` returned.
        start: as `claim` takes it.
        upgrade: as `is_finished` takes it.

    Raises:
        UserError: as `claim`, `is_finished` and `lease.held`.
    """
    with held(out) as lease:
        if not is_finished(out, identity, upgrade):  # who held the lease may have ended meanwhile
            begun = claim(out, identity, start, upgrade)
            outcome = run(begun, lease)
            lease.check()
            publish(begun, outcome)
        storage.delete(storage.join(out, RUN))


def environment() -> dict[str, Any]:
    """What a model's provenance says about the code: ``packages``, ``python``, ``git_commit`` (None in a wheel)."""
    return {
        "packages": {name: version(name) for name in _PACKAGES},
        "python": sys.version.split()[0],
        "git_commit": _git_commit(),
    }


def _compare(out: str, what: str, theirs: Identity, ours: Identity, upgrade: Upgrade) -> None:
    old, new = _flat(upgrade(theirs["arguments"])), _flat(ours["arguments"])
    # An identity of an earlier version may have what has become free since.
    differing = [f"{key}={old.get(key)}" for key in sorted({*old, *new} - _FREE) if old.get(key) != new.get(key)]
    old, new = theirs["contents"], ours["contents"]
    differing += [f"another content of {key}" for key in sorted({*old} & {*new}) if old[key] != new[key]]
    if differing:
        raise UserError(f"out={out} holds {what} with {', '.join(differing)}; choose another out")


def _flat(arguments: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in arguments.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _git_commit() -> str | None:
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    answer = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else None
