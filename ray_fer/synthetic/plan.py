"""The contents of a synthetic study, decided before anything is drawn: classes, people and random streams.

The sets have the problems that the system is made for. The labelled set is small and long-tailed. Validation and test
are milder, so that rare classes can be measured at all. The unlabeled buckets have a bias of their own and hold faces
of no labelled class; the second one also looks different (grey, blurred, dim). A pseudo-labeller that trusts its
confidence everywhere inherits all of that. No person occurs in two sets. All shares are design choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ray_fer.synthetic.config import DrawFacesConfig
from ray_fer.synthetic.nuisance import PHOTOS, SURVEILLANCE, Style

Shares = Mapping[str, float]

LABELED_SHARES: Shares = MappingProxyType(
    {
        "neutral": 0.36,
        "happiness": 0.28,
        "sadness": 0.13,
        "surprise": 0.11,
        "anger": 0.08,
        "fear": 0.03,
        "disgust": 0.01,
        "contempt": 0.01,
        "other": 0.03,
    }
)
"""The long tail of annotated faces in the wild; shares of the classes asked for are rescaled to sum to one."""

MEASURED_SHARES: Shares = MappingProxyType(
    {
        "neutral": 0.22,
        "happiness": 0.18,
        "sadness": 0.15,
        "surprise": 0.13,
        "anger": 0.13,
        "fear": 0.10,
        "disgust": 0.09,
        "contempt": 0.08,
        "other": 0.10,
    }
)
"""Validation and test: the same order, a shorter tail."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """What an unlabeled bucket holds and what its pictures look like."""

    shares: Shares
    style: Style


BUCKETS: tuple[Bucket, ...] = (
    Bucket(
        MappingProxyType(
            {
                "neutral": 0.42,
                "happiness": 0.30,
                "sadness": 0.05,
                "surprise": 0.05,
                "anger": 0.04,
                "fear": 0.035,
                "disgust": 0.035,
                "contempt": 0.03,
                "other": 0.04,
            }
        ),
        PHOTOS,
    ),
    Bucket(
        MappingProxyType(
            {
                "neutral": 0.46,
                "happiness": 0.14,
                "sadness": 0.08,
                "surprise": 0.04,
                "anger": 0.08,
                "fear": 0.04,
                "disgust": 0.04,
                "contempt": 0.06,
                "other": 0.06,
            }
        ),
        SURVEILLANCE,
    ),
)
"""Bucket a resembles social media, b a camera on the ceiling. Further buckets repeat the two with other people."""

CLASSES: tuple[str, ...] = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
"""The labelled classes; buckets also hold `contempt` and `other`."""

_PHOTOS_PER_SUBJECT = 4
_FOLDER_SIZE = 250
_FACE, _PERSON, _CLIP, _PLAN = range(4)
"""First words of the random streams' keys."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One photo to draw: `stream` is the key of its randomness, `path` is relative to the output."""

    path: str
    label: str
    subject: int
    stream: tuple[int, ...]
    style: Style


@dataclass(frozen=True, slots=True)
class Film:
    """One clip to draw; the fields are as in `Picture`."""

    path: str
    subject: int
    stream: tuple[int, ...]


def class_counts(total: int, shares: Shares, classes: Sequence[str], floor: int = 0) -> dict[str, int]:
    """The number of pictures per class: proportional to its share, at least `floor`, and `total` in all.

    The largest remainders are rounded up. Pictures that the floor adds are taken from the most frequent class.

    Raises:
        ValueError: If the floors alone exceed the total.
    """
    if floor * len(classes) > total:
        raise ValueError(f"{len(classes)} classes of at least {floor} pictures do not fit in {total}")
    weights = np.array([shares[name] for name in classes])
    exact = total * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[index] += 1
    counts = np.maximum(counts, floor)
    while counts.sum() > total:
        counts[counts.argmax()] -= 1
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}


def _plan_set(
    config: DrawFacesConfig,
    name: str,
    number: int,
    counts: Mapping[str, int],
    first_subject: int,
    style: Style = PHOTOS,
) -> list[Picture]:
    """The pictures of one set, in an order that is independent of their labels."""
    total = sum(counts.values())
    last_subject = first_subject + max(1, round(total / _PHOTOS_PER_SUBJECT)) - 1
    rng = np.random.default_rng([config.seed, _PLAN, number])
    labels = rng.permutation(np.repeat(list(counts), list(counts.values())))
    owners = rng.integers(first_subject, last_subject + 1, total)
    folders = name.startswith("bucket")
    return [
        Picture(
            path=f"{name}/{index // _FOLDER_SIZE:03d}/{index:06d}.jpg" if folders else f"{name}/{index:06d}.jpg",
            label=str(label),
            subject=int(owner),
            stream=(config.seed, _FACE, number, index),
            style=style,
        )
        for index, (label, owner) in enumerate(zip(labels, owners, strict=True))
    ]


def next_subject(sets: Mapping[str, Sequence[Picture]]) -> int:
    """The lowest number that, like all above it, belongs to no person yet."""
    return 1 + max((picture.subject for pictures in sets.values() for picture in pictures), default=-1)


def plan_pictures(config: DrawFacesConfig) -> dict[str, list[Picture]]:
    """Every photo of every set ("labeled", "val", "test", "bucket-a", ...), before any is drawn."""
    sets: dict[str, list[Picture]] = {}
    for number, (name, total, shares) in enumerate(
        (
            ("labeled", config.labeled, LABELED_SHARES),
            ("val", config.val, MEASURED_SHARES),
            ("test", config.test, MEASURED_SHARES),
        )
    ):
        floor = min(5, total // len(CLASSES))
        sets[name] = _plan_set(config, name, number, class_counts(total, shares, CLASSES, floor), next_subject(sets))
    for index, total in enumerate(config.unlabeled):
        bucket = BUCKETS[index % len(BUCKETS)]
        counts = class_counts(total, bucket.shares, tuple(bucket.shares))
        name = f"bucket-{chr(ord('a') + index)}"
        sets[name] = _plan_set(config, name, 10 + index, counts, next_subject(sets), bucket.style)
    return sets


def plan_films(config: DrawFacesConfig, first_subject: int) -> dict[str, list[Film]]:
    """Clips per split, each of a person of its own."""
    films = [
        Film(f"clips/{index:04d}.mp4", first_subject + index, (config.seed, _CLIP, index))
        for index in range(config.clips)
    ]
    held_out = max(1, config.clips // 6) if films else 0
    train = len(films) - 2 * held_out
    return {"train": films[:train], "val": films[train : train + held_out], "test": films[train + held_out :]}


def identity_stream(config: DrawFacesConfig, subject: int) -> np.random.Generator:
    """The randomness that makes a person: the same in every picture of them."""
    return np.random.default_rng([config.seed, _PERSON, subject])
