"""The progress of a labelling run as Ray metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

import ray.util.metrics

from ray_fer.labeling.progress import Progress
from ray_fer.labeling.work import UnitStats


class Metrics:
    """Exports the counts of a `Progress` to Prometheus.

    The metrics are ``ray_fer_labelled_images_total{status}``, ``ray_fer_predictions_total{label,model}``,
    ``ray_fer_images_per_second``, ``ray_fer_sure_share`` and ``ray_fer_images_left``, which is -1 while the listing
    continues. All of them have the tag ``run``.
    """

    def __init__(self, run: str) -> None:
        # Ray adds the prefix "ray_" to every name, and the exporter adds "_total" to the name of a counter.
        self._images = ray.util.metrics.Counter("fer_labelled_images", "Images labelled", ("run", "status"))
        labels = ("run", "label", "model")
        self._labels = ray.util.metrics.Counter("fer_predictions", "Predictions by class", labels)
        self._rate = ray.util.metrics.Gauge("fer_images_per_second", "Images per second", ("run",))
        self._sure = ray.util.metrics.Gauge("fer_sure_share", "Predictions above the threshold", ("run",))
        self._left = ray.util.metrics.Gauge("fer_images_left", "Images to go, -1 while unknown", ("run",))
        for metric in (self._images, self._labels, self._rate, self._sure, self._left):
            metric.set_default_tags({"run": run})

    def add(
        self, statuses: Mapping[str, int], parts: Mapping[str, UnitStats], progress: Progress, left: int | None
    ) -> None:
        """Publishes the counts after a unit.

        Args:
            statuses: Number of the unit's images per status.
            parts: Description of the rows of each model.
            progress: Counts of the run, including the unit.
            left: Number of images that are not labelled yet, or None while the listing continues.
        """
        for status, count in statuses.items():
            self._images.inc(count, {"status": status})
        for model, stats in parts.items():
            for name, bins in zip(progress.classes, stats.confidence, strict=True):
                if count := sum(bins):
                    self._labels.inc(count, {"label": name, "model": model})
        self._rate.set(progress.rate())
        self._sure.set(progress.sure_share())
        self._left.set(-1 if left is None else left)
