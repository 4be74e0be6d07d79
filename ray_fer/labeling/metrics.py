"""The figures of a labelling run as Ray metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

import ray.util.metrics

from ray_fer.labeling.progress import Progress
from ray_fer.labeling.work import UnitStats


class Metrics:
    """The figures of a `Progress`, under the names that Prometheus sees.

    ``ray_fer_labelled_images_total{status}``, ``ray_fer_predictions_total{label,model}``,
    ``ray_fer_images_per_second``, ``ray_fer_sure_share`` and ``ray_fer_images_left`` (-1 while the listing goes on);
    all with ``run``.
    """

    def __init__(self, run: str) -> None:
        # Ray puts "ray_" before every name, and Prometheus's exporter "_total" behind a counter's.
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
        """Publishes a unit and the sums that it led to.

        Args:
            statuses: its images per status.
            parts: for each model the description of its rows.
            progress: of the run, the unit included.
            left: images to go; None while the listing goes on.
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
