"""The progress of a labelling run, and the check that stops it if too many images fail.

`Progress` adds up the descriptions that workers send with each unit (see `work`), so the driver's memory does not grow
with the run.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_fer.errors import UserError
from ray_fer.labeling.table import OK
from ray_fer.labeling.work import CONFIDENCE_BINS, MOST_ERRORS, Sample, UnitStats, failures_in, smallest_samples

FEWEST_FOR_SHARE = 1000
# Strict, because bad images come in clusters.
CHANCE = 1e-9
_TIMELINE_POINTS = 400


class Progress:
    """The counts of a run, or of one teacher in it.

    Args:
        classes: Names of the K classes.
        threshold: Confidence from which a prediction counts as sure.
        actors: Number of actors that label at the same time, for the cost.
        device: ``cpu`` or ``cuda``.

    Attributes:
        statuses: Number of images per status.
        retried: Number of images per status, of those that had been tried before.
        errors: Number of images per status and error. Rare errors are dropped if there are many.
        confidence: Predictions of each class over equal bins of the confidence, int64 (K, `CONFIDENCE_BINS`).
        samples: For each class some (digest, uri, confidence).
        timeline: Points (seconds since the start, images so far), every other one of which is dropped when there are
            too many.
    """

    def __init__(self, classes: Sequence[str], threshold: float, actors: int, device: str) -> None:
        self.classes, self.threshold, self.actors, self.device = tuple(classes), threshold, actors, device
        self.statuses: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.errors: Counter[tuple[str, str]] = Counter()
        self.confidence = np.zeros((len(classes), CONFIDENCE_BINS), np.int64)
        self.samples: dict[str, list[Sample]] = {name: [] for name in classes}
        self.timeline: list[tuple[float, int]] = [(0.0, 0)]
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    @property
    def done(self) -> int:
        """Number of images so far."""
        return self.statuses.total()

    @property
    def failed(self) -> int:
        """Number of failed images so far."""
        return sum(failures_in(self.statuses).values())

    def add(self, stats: UnitStats) -> None:
        """Adds the images of a unit."""
        self.statuses.update(stats.statuses)
        self.retried.update(stats.retried)
        for status, error, count in stats.errors:
            self.errors[status, error] += count
        if len(self.errors) > 10 * MOST_ERRORS:
            self.errors = Counter(dict(self.errors.most_common(5 * MOST_ERRORS)))
        self.confidence += np.asarray(stats.confidence, np.int64)
        for name, found in stats.samples.items():
            self.samples[name] = smallest_samples([*self.samples[name], *found])
        self._extend_timeline()

    def _extend_timeline(self) -> None:
        self.timeline.append((self.seconds, self.done))
        if len(self.timeline) > _TIMELINE_POINTS:
            self.timeline = [*self.timeline[:-1:2], self.timeline[-1]]

    def labels(self) -> dict[str, int]:
        """Returns the number of predictions of each class."""
        return dict(zip(self.classes, self.confidence.sum(axis=1).tolist(), strict=True))

    def sure_share(self) -> float:
        """Returns the fraction of the predictions with a confidence of at least the threshold, rounded to a bin."""
        first = round(self.threshold * CONFIDENCE_BINS)
        return float(self.confidence[:, first:].sum() / max(self.confidence.sum(), 1))

    def rate(self) -> float:
        """Returns the images per second since the first unit was done, or 0 before the second one."""
        (start, first), (end, last) = self.timeline[min(1, len(self.timeline) - 1)], self.timeline[-1]
        return (last - first) / (end - start) if end > start else 0.0

    def device_hours(self, seconds: float) -> float:
        """Returns the cost of ``seconds`` of all actors, in hours of a GPU or of a CPU core."""
        return seconds * self.actors / 3600

    def line(self, left: int | None) -> str:
        """Returns a line for people.

        Args:
            left: Number of images that are not labelled yet, or None while the listing continues.
        """
        parts = [f"{self.done:,} labelled" if left is None else f"{self.done:,} of {self.done + left:,} labelled"]
        parts += [f"{count:,} {status}" for status, count in sorted(self.statuses.items()) if status != OK and count]
        rate = self.rate()
        if rate:
            parts.append(f"{rate:,.{0 if rate >= 10 else 1}f} images/s")
        unit = "GPU-hours" if self.device == "cuda" else "core-hours"
        cost = f"{self.device_hours(self.seconds):.2f} {unit}"
        if left is not None and rate:
            eta = left / rate
            parts.append(f"{_clock(eta)} to go")
            cost += f" of {self.device_hours(self.seconds + eta):.2f}"
        parts.append(cost)
        total = self.confidence.sum()
        if total:
            shares = sorted(self.labels().items(), key=lambda item: -item[1])
            parts.append(f"{self.sure_share():.0%} at {self.threshold:g} or more")
            parts.append(" ".join(f"{name} {count / total:.0%}" for name, count in shares if count))
        return ", ".join(parts)

    def predictions(self) -> dict[str, Any]:
        """Returns the counts of images and predictions for the run's summary."""
        return {
            "statuses": {status: count for status, count in sorted(self.statuses.items()) if count},
            "predicted": self.labels(),
            "sure_share": round(self.sure_share(), 4),
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the counts, the speed and the cost for the run's summary."""
        return {
            **self.predictions(),
            "images_per_second": round(self.rate(), 1),
            "gpu_hours" if self.device == "cuda" else "core_hours": round(self.device_hours(self.seconds), 4),
        }


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def too_many(failed: int, done: int, share: float) -> bool:
    """Returns whether more than a given fraction of the images fails.

    From `FEWEST_FOR_SHARE` images on, the observed fraction decides. Fewer images fail the test only if their number of
    failures is significant. If no more than ``share`` of all images failed, so many failures or more would have a
    probability below `CHANCE`, by the exact binomial distribution.

    Args:
        failed: Number of failed images.
        done: Number of images, including the failed ones.
        share: Largest acceptable fraction, from 0 to 1.
    """
    if failed <= share * done:
        return False
    return done >= FEWEST_FOR_SHARE or binomial_tail(failed, done, share) < CHANCE


def binomial_tail(least: int, trials: int, chance: float) -> float:
    """Returns the probability of ``least`` or more successes in independent trials with the success rate ``chance``."""
    if least <= 0 or chance >= 1:
        return float(least <= trials)
    if chance <= 0:
        return 0.0
    logs = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(chance)
        + (trials - k) * math.log1p(-chance)
        for k in range(least, trials + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def check_failures(progress: Progress, share: float, most: int | None) -> None:
    """Stops a run in which too many images fail, as soon as that is certain.

    Args:
        progress: Counts of the run so far.
        share: Largest acceptable fraction of failures, from 0 to 1, among at least `FEWEST_FOR_SHARE` images.
        most: Largest acceptable number of failures, or None for any number.

    Raises:
        UserError: If there are too many failures. The message gives their number and their most frequent error.
    """
    if most is not None and progress.failed > most:
        raise _failure(f"max_failures={most}", progress, progress.statuses)
    if progress.done >= FEWEST_FOR_SHARE and too_many(progress.failed, progress.done, share):
        raise _failure(f"max_failure_share={share}", progress, progress.statuses)


def check_outcome(progress: Progress, share: float, labelled: int, failed: int = 0) -> None:
    """Checks a run that has ended, because only the complete result of a few images is meaningful.

    Images that had failed before do not count, unless nothing has ever been labelled.

    Args:
        progress: Counts of the complete run.
        share: Largest acceptable fraction of failures, from 0 to 1.
        labelled: Number of images in the table when the run began, without the failed ones.
        failed: Number of listed images that were not tried because earlier runs have failed on them. It only matters
            if nothing is labelled.

    Raises:
        UserError: If there are too many failures, or if nothing could be labelled.
    """
    if share < 1 and not labelled and progress.failed == progress.done:
        if progress.done:
            raise _failure("nothing could be labelled", progress, progress.statuses)
        if failed:
            raise UserError(f"nothing could be labelled: earlier runs failed on all {failed} images, as their rows say")
    fresh = progress.statuses - progress.retried
    if too_many(sum(failures_in(fresh).values()), fresh.total(), share):
        raise _failure(f"max_failure_share={share}", progress, fresh)


def _failure(what: str, progress: Progress, statuses: Counter[str]) -> UserError:
    bad = failures_in(statuses)
    status, count = max(bad.items(), key=lambda item: item[1])
    texts = {error: often for (of, error), often in progress.errors.items() if of == status}
    most = f", most often: {max(texts, key=lambda error: texts[error])}" if texts else ""
    return UserError(f"{what}: {sum(bad.values())} of {statuses.total()} images failed ({count} {status}){most}")
