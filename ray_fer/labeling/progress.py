"""What a labelling run has done so far, added up in the driver, and when so many images fail that it has to stop.

`Progress` adds up the descriptions that workers send with each unit (see `work`), so that the driver's memory does not
grow with the run.
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
# Strict, for bad images come in clumps.
CHANCE = 1e-9
_TIMELINE_POINTS = 400


class Progress:
    """The sums of a run, or of one teacher's share of it.

    Args:
        classes: K names.
        threshold: confidence from which a prediction counts as sure.
        actors: labelling at the same time, for the cost.
        device: ``cpu`` or ``cuda``.

    Attributes:
        statuses: images per status.
        retried: those of them that had been tried before.
        errors: images per status and error; of many different ones those that occur most.
        confidence: int64 (K, `CONFIDENCE_BINS`), of the predictions of all teachers.
        samples: of every class some (digest, uri, confidence).
        timeline: (seconds since the start, images by then), evenly thinned.
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
        """Since the run began."""
        return time.monotonic() - self._started

    @property
    def done(self) -> int:
        """Images so far."""
        return self.statuses.total()

    @property
    def failed(self) -> int:
        """Images without a prediction so far."""
        return sum(failures_in(self.statuses).values())

    def add(self, stats: UnitStats) -> None:
        """Adds the description of a unit."""
        self.statuses.update(stats.statuses)
        self.retried.update(stats.retried)
        for status, error, count in stats.errors:
            self.errors[status, error] += count
        if len(self.errors) > 10 * MOST_ERRORS:
            self.errors = Counter(dict(self.errors.most_common(5 * MOST_ERRORS)))
        self.confidence += np.asarray(stats.confidence, np.int64)
        for name, found in stats.samples.items():
            self.samples[name] = smallest_samples([*self.samples[name], *found])
        self._mark()

    def _mark(self) -> None:
        self.timeline.append((self.seconds, self.done))
        if len(self.timeline) > _TIMELINE_POINTS:
            self.timeline = [*self.timeline[:-1:2], self.timeline[-1]]

    def labels(self) -> dict[str, int]:
        """How often each class was predicted."""
        return dict(zip(self.classes, self.confidence.sum(axis=1).tolist(), strict=True))

    def sure_share(self) -> float:
        """Share of the predictions that are at least as sure as the threshold, to a `CONFIDENCE_BINS`-th."""
        first = round(self.threshold * CONFIDENCE_BINS)
        return float(self.confidence[:, first:].sum() / max(self.confidence.sum(), 1))

    def rate(self) -> float:
        """Images per second since the first unit was done; 0 before the second one."""
        (start, first), (end, last) = self.timeline[min(1, len(self.timeline) - 1)], self.timeline[-1]
        return (last - first) / (end - start) if end > start else 0.0

    def device_hours(self, seconds: float) -> float:
        """What ``seconds`` of all actors cost: hours of a GPU, or of a CPU core."""
        return seconds * self.actors / 3600

    def line(self, left: int | None) -> str:
        """One line for people.

        Args:
            left: images to go; None while the listing goes on.
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
        """What came of the images, without what it took."""
        return {
            "statuses": {status: count for status, count in sorted(self.statuses.items()) if count},
            "predicted": self.labels(),
            "sure_share": round(self.sure_share(), 4),
        }

    def to_json(self) -> dict[str, Any]:
        """For the run's summary."""
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
    """Whether more than a ``share`` of the images fails.

    Of `FEWEST_FOR_SHARE` images and more, the share that failed is compared. Of fewer it says little: they have to be
    so many that, if no more than ``share`` of all images failed, that would happen with a chance below `CHANCE`, by the
    exact binomial distribution.

    Args:
        failed: images.
        done: images, those included.
        share: from 0 to 1.
    """
    if failed <= share * done:
        return False
    return done >= FEWEST_FOR_SHARE or binomial_tail(failed, done, share) < CHANCE


def binomial_tail(least: int, trials: int, chance: float) -> float:
    """The probability of ``least`` or more successes in independent trials that succeed with a ``chance`` each."""
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
        progress: so far.
        share: of at least `FEWEST_FOR_SHARE` images that may fail.
        most: images that may fail; None for any number.

    Raises:
        UserError: saying how many failed, and of what most.
    """
    if most is not None and progress.failed > most:
        raise _failure(f"max_failures={most}", progress, progress.statuses)
    if progress.done >= FEWEST_FOR_SHARE and too_many(progress.failed, progress.done, share):
        raise _failure(f"max_failure_share={share}", progress, progress.statuses)


def check_outcome(progress: Progress, share: float, labelled: int, failed: int = 0) -> None:
    """Says of a run that has ended that it failed: of few images the order tells nothing, so all are waited for.

    Images that had failed before say nothing new, unless nothing has ever been labelled.

    Args:
        progress: of the whole run.
        share: of the images that may fail; 1 for all.
        labelled: images that the table held when the run began.
        failed: images that were listed and not tried because earlier runs have failed on them, where none is labelled.

    Raises:
        UserError: as `check_failures`.
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
