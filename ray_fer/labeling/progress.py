"""What a labelling run has done so far: counted on the workers per unit, added up in the driver, shown while it goes.

`unit_stats` describes a unit in a few kilobytes, whatever its size; `Progress` adds such descriptions up, so that the
driver's memory does not grow with the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_fer.labeling.table import OK, SUCCESSES

if TYPE_CHECKING:
    from ray_fer.labeling.unit import Row

CONFIDENCE_BINS = 100
SAMPLES_PER_CLASS = 8  # a row of the sheet
_TIMELINE_POINTS = 400
# Of each unit the texts that occur most, and of a run ten times as many.
_ERRORS = 20

Sample = tuple[str, str, float]


@dataclass(frozen=True)
class UnitStats:
    """The description of the rows of a unit, small whatever its size.

    Attributes:
        statuses: images per status.
        retried: images per status, of those that had been tried before.
        errors: the (status, error, images) that occur most.
        confidence: int (K, `CONFIDENCE_BINS`), how often each class was predicted at which confidence.
        samples: of every class, the (digest, uri, confidence) of the pictures with the smallest digests, which is a
            random choice that joins across units in any order.
        read_otherwise: the (uri, listed identity, identity) of the objects that were read with another identity than
            the listed one.
    """

    statuses: dict[str, int]
    retried: dict[str, int]
    errors: list[tuple[str, str, int]]
    confidence: list[list[int]]
    samples: dict[str, list[Sample]]
    read_otherwise: list[tuple[str, str, str]]


def unit_stats(rows: Sequence[Row], classes: Sequence[str]) -> UnitStats:
    """Describes the rows of a unit, whose predictions are of ``classes``, K names."""
    histogram = np.zeros((len(classes), CONFIDENCE_BINS), np.int64)
    index = {name: k for k, name in enumerate(classes)}
    candidates: list[list[Sample]] = [[] for _ in classes]
    for row in rows:
        if row.status == OK:
            assert row.label is not None
            assert row.digest is not None
            k, confidence = index[row.label], float(row.confidence)
            histogram[k, min(int(confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)] += 1
            candidates[k].append((row.digest.hex(), row.uri, confidence))
    errors = Counter((row.status, row.error) for row in rows if row.error and not row.further_face)
    return UnitStats(
        statuses=dict(image_statuses(rows)),
        retried=dict(image_statuses(row for row in rows if row.attempt > 1)),
        errors=[(*key, count) for key, count in errors.most_common(_ERRORS)],
        confidence=histogram.tolist(),
        samples={name: _smallest(found) for name, found in zip(classes, candidates, strict=True)},
        read_otherwise=[(*row.listed_as, row.identity) for row in rows if row.listed_as],
    )


def image_statuses(rows: Iterable[Row]) -> Counter[str]:
    """Counts images per status; an image with several faces has a row for each of them."""
    return Counter(row.status for row in rows if not row.further_face)


def joint_stats(statuses: dict[str, int], parts: Sequence[UnitStats]) -> UnitStats:
    """Describes a unit that several teachers labelled: images count once, predictions once per teacher.

    Args:
        statuses: images per status.
        parts: the description of the rows of each teacher.
    """
    names = parts[0].samples
    retried, errors = Counter[str](), Counter[tuple[str, str]]()
    for part in parts:
        retried |= Counter(part.retried)
        errors |= Counter({(status, error): count for status, error, count in part.errors})
    return UnitStats(
        statuses=statuses,
        retried=dict(retried),
        errors=[(*key, count) for key, count in errors.items()],
        confidence=np.sum([part.confidence for part in parts], axis=0).tolist(),
        samples={name: _smallest(found for part in parts for found in part.samples[name]) for name in names},
        read_otherwise=[],
    )


def failures_in(statuses: Mapping[str, int]) -> dict[str, int]:
    """Those of the images per status that have no prediction."""
    return {status: count for status, count in statuses.items() if status not in SUCCESSES}


def _smallest(samples: Iterable[Sample]) -> list[Sample]:
    unique = {sample[0]: sample for sample in samples}
    return [unique[digest] for digest in sorted(unique)[:SAMPLES_PER_CLASS]]


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
        if len(self.errors) > 10 * _ERRORS:
            self.errors = Counter(dict(self.errors.most_common(5 * _ERRORS)))
        self.confidence += np.asarray(stats.confidence, np.int64)
        for name, found in stats.samples.items():
            self.samples[name] = _smallest([*self.samples[name], *found])
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
