"""The job that computes the backbone's features of every frame of labelled videos once and keeps them.

The temporal encoder trains in minutes on vectors; the backbone that makes them takes hours. Only counts travel to the
driver: the actors write the files themselves, see `ray_fer.video.features`.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import ray.data

from ray_fer import cluster, storage
from ray_fer.documents import MissingDocumentError, read_document
from ray_fer.errors import UserError
from ray_fer.jobs.evaluate import labelled_for
from ray_fer.models.artifact import Artifact, open_artifact
from ray_fer.resources import check_device, extractors, find_device
from ray_fer.room import Demand
from ray_fer.training import lease
from ray_fer.video.config import ExtractFeaturesConfig
from ray_fer.video.features import FEATURES, INFO, MAX_FAILURES, Extracted, UnitExtractor, make_units

_SUMS = ("videos", "frames", "labelled", "failed")

log = logging.getLogger(__name__)


def extract_features(config: ExtractFeaturesConfig) -> dict[str, Any]:
    """Extract the features of a manifest of video frames; what is already there is not done again.

    Returns:
        ``videos``, ``frames``, ``labelled`` and ``failed`` (counts), ``dim`` (D), ``features`` (URI of the files).

    Raises:
        UserError: When the model or the manifest cannot be used, or when not one frame could be read.
    """
    check_device(config.device)
    artifact = open_artifact(config.model)
    units = make_units(labelled_for(artifact.classes, config.data, None), artifact.id)
    done = _read_done(config.out)
    if done is None or done["files"] != [unit["file"] for unit in units]:
        with lease.held(storage.normalise(config.out)) as held:
            rows = _extract(config, units)
            held.check()
            done = _publish(config, artifact, units, rows)
    else:
        log.info("%s: everything is there already", config.out)
    if not done["frames"]:
        raise UserError(f"data={config.data}: not one frame could be read ({done['failures'][0]['error']})")
    counts: dict[str, Any] = {**done}
    return {**{key: counts[key] for key in (*_SUMS, "dim")}, "features": storage.join(config.out, FEATURES)}


def _read_done(out: str) -> Extracted | None:
    try:
        return read_document(storage.join(out, INFO), Extracted)
    except MissingDocumentError:
        return None


def _extract(config: ExtractFeaturesConfig, units: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Run the actors and return the row of counts of each unit."""
    cluster.connect()
    cluster.prepare_data()
    device = find_device(config.device)
    workers, share = extractors(device, config.workers, cluster.accelerators(), cluster.cpus())
    takes = {"CPU": share["num_cpus"], "GPU": share.get("num_gpus", 0)}
    cluster.wait_for_room(Demand("workers", 1, takes), config.wait_minutes)
    results = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
        UnitExtractor,
        fn_constructor_kwargs={
            "model": storage.normalise(config.model),
            "folder": storage.join(storage.normalise(config.out), FEATURES),
            "batch_size": config.batch_size,
            "device": device,
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=max(1, min(workers, len(units)))),
        **share,
    )
    rows: list[dict[str, Any]] = []
    for row in results.iter_rows():
        rows.append(row)
        log.info("%d of %d units, %d frames", len(rows), len(units), sum(int(done["frames"]) for done in rows))
    return rows


def _publish(
    config: ExtractFeaturesConfig, artifact: Artifact, units: list[dict[str, str]], rows: list[dict[str, Any]]
) -> Extracted:
    """Write ``features.json`` and delete the files of earlier manifests."""
    failures = sorted((failure for row in rows for failure in json.loads(row["failures"])), key=lambda f: f["video"])
    sums = {key: sum(int(row[key]) for row in rows) for key in _SUMS}
    done = Extracted(
        classes=list(artifact.classes),
        backbone=artifact.id,
        backbone_uri=storage.normalise(config.model),
        dim=max(int(row["dim"]) for row in rows),
        videos=sums["videos"],
        frames=sums["frames"],
        labelled=sums["labelled"],
        failed=sums["failed"],
        failures=failures[:MAX_FAILURES],
        files=[unit["file"] for unit in units],
    )
    storage.write_json(storage.join(config.out, INFO), done)
    folder = storage.join(config.out, FEATURES)
    for name in set(storage.list_dir(folder)) - set(done["files"]):
        storage.delete(storage.join(folder, name))
    return done
