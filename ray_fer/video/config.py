"""The configs of the jobs for video."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ray_fer.config import ACTORS, Count, Device, Fraction, JobConfig, Minutes, NonNegative, Seed, Share, Uri, Uris


class ExtractFeaturesConfig(JobConfig):
    """``jobs/extract_features.py``"""

    aliases = ACTORS

    data: Uri
    model: Uri
    out: Uri
    device: Device
    workers: Count | None
    wait_minutes: Minutes
    batch_size: Count


class TrainTemporalConfig(JobConfig):
    """``jobs/train_temporal.py``"""

    features: Uri
    val: Uri
    out: Uri
    window: Annotated[int, Field(ge=2)]
    stride: Count
    width: Count
    layers: Annotated[int, Field(ge=1, le=1000)]
    heads: Count
    dropout: Fraction
    epochs: Count
    batch_size: Count
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: NonNegative
    label_smoothing: Share
    smoothing: list[Annotated[int, Field(ge=0)]]
    seed: Seed
    device: Device
    workers: Count | None
    wait_minutes: Minutes
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    max_failures: Annotated[int, Field(ge=0)]


class PredictVideoConfig(JobConfig):
    """``jobs/predict_video.py``"""

    source: Uris
    model: Uri
    out: Uri
    device: Device
    batch_size: Count
