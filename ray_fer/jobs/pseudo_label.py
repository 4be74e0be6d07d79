"""The main job: the teachers' predictions for every image of the sources, each exactly once per content and model.

This is the order of things: checks, the run (`ray_fer.labeling.run`), its page, the selection.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_fer import storage
from ray_fer.config import section_config
from ray_fer.data.sources import check_sources
from ray_fer.errors import UserError, as_user_error, prefixed
from ray_fer.labeling.config import PseudoLabelConfig, SelectPseudoLabelsConfig
from ray_fer.labeling.exclusions import name_exclusions, read_exclusions
from ray_fer.labeling.table import create_table, open_table
from ray_fer.models.engines import describe_embedding
from ray_fer.models.face_detector import weights
from ray_fer.models.teacher import OnnxTeacher, Teacher, check_teacher, check_together, open_teacher
from ray_fer.resources import check_device

if TYPE_CHECKING:  # Ray takes seconds to import, a mistyped path should not
    from ray_fer.labeling.run import LabelingRun

log = logging.getLogger(__name__)


def pseudo_label(config: PseudoLabelConfig) -> dict[str, Any]:
    """Labels what the table does not hold yet, commits as it goes, and selects pseudo-labels if ``select`` is set.

    Args:
        config: see ``conf/pseudo_label.yaml``.

    Returns:
        The summary: counts of listed, skipped, already labelled and newly labelled images by status, and of objects
        marked as gone or returned; the model id, the table and its version. With several teachers an image is already
        labelled when none of them lacks it, and ``models`` has the counts of each.

    Raises:
        UserError: for bad input, before any cluster work; and when so many images fail that something else is wrong.
    """
    teachers = _checked(config)
    places = {"teacher": [teacher.uri for teacher in teachers], "table": storage.normalise(config.table)}
    config = config.model_copy(update=places)
    if any(isinstance(teacher, OnnxTeacher) for teacher in teachers):
        config = config.model_copy(update={"device": "cpu"})
    if config.dry_run:
        from ray_fer.labeling.dry_run import dry_run

        return dry_run(config, teachers)

    from ray_fer import cluster
    from ray_fer.labeling.run import LabelingRun

    cluster.connect_unless_alone()
    run = LabelingRun(config, teachers)
    run.go()
    run.compact()
    summary = run.summary()
    run.write("summary.json", summary)
    if run.metrics:  # a few images that needed no Ray need no page either: drawing it takes as long
        summary["report"] = _report(run, summary)
    run.check_outcome()
    if config.select:
        from ray_fer.jobs.select_pseudo_labels import select_pseudo_labels

        selection = SelectPseudoLabelsConfig(
            table=config.table,
            teacher=config.teacher,
            out=config.select,
            feedback=config.feedback,
            precision=config.precision,
            flip=config.flip,
            faces=config.faces,
            selection=config.selection,
        )
        summary["selection"] = select_pseudo_labels(selection)
    return summary


def embed_pictures(
    pictures: Sequence[str], teacher: str | Sequence[str], table: str, **settings: Any
) -> dict[str, Any]:
    """Keeps the predictions and embeddings of pictures that are named, as those of a manifest, each once.

    The table is best one of its own: what is labelled is no pseudo-label. ``Embeddings`` reads it.

    Args:
        pictures: URIs, as of `Manifest.uris` or `named_pictures`.
        teacher: as in ``conf/pseudo_label.yaml``.
        table: as in ``conf/pseudo_label.yaml``.
        settings: further keys of ``conf/pseudo_label.yaml``; ``embed`` is true unless they say otherwise.

    Returns:
        The summary, as `pseudo_label` gives it.

    Raises:
        UserError: as `pseudo_label` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "pictures.txt")
        source.write_text("".join(f"{uri}\n" for uri in pictures))
        fixed = {"source": str(source), "teacher": teacher, "table": table}
        return pseudo_label(section_config("embed_pictures", "pseudo_label", {"embed": True} | settings | fixed))


def _checked(config: PseudoLabelConfig) -> list[Teacher]:
    """The teachers, once everything that can be known to be wrong before the cluster is there has been looked at."""
    places = [("table", config.table), ("select", config.select or ".")]
    for key, uri in places:
        storage.normalise_argument(key, uri)
    teachers: list[Teacher] = []
    for uri in config.teacher:
        with prefixed("teacher="):
            teachers.append(open_teacher(uri))
    check_together(teachers)
    for teacher in teachers:
        check_teacher(teacher, config.engine, config.device, config.precision)
    check_device(config.device)
    if config.detects_faces:
        weights()
    check_sources(config.source)
    if config.select:  # what would end the selection must not do so after hours of labelling
        read_exclusions(config.selection)
    else:
        name_exclusions(config.selection.exclude)
    if config.feedback:
        _check_exists("feedback", config.feedback)
    embeddings = {teacher.id: describe_embedding(teacher) for teacher in teachers if config.embed}
    (open_table if config.dry_run else create_table)(config.table, teachers[0].classes, embeddings)
    return teachers


def _check_exists(key: str, uri: str) -> None:
    with as_user_error(f"{key}={uri}: cannot be read"):
        found = storage.exists(uri)
    if not found:
        raise UserError(f"{key}={uri}: no such file or folder")


def _report(run: LabelingRun, summary: dict[str, Any]) -> str | None:
    """Writes the page about the run and returns its URI, None where that fails."""
    from ray_fer.reports.labeling_run import run_report

    try:
        page = run_report(
            summary,
            failed=run.progress.failed,
            threshold=run.progress.threshold,
            confidence=run.progress.confidence,
            samples=run.progress.samples,
            timeline=run.progress.timeline,
        )
        return run.write("report.html", page)
    except UserError as error:
        log.warning("no report: %s", error)
        return None
