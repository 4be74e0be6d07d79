"""The parts of the feedback, which a config names."""

from __future__ import annotations

from typing import Literal, get_args

FeedbackPart = Literal["loss_weights", "sampling_weights", "thresholds", "debiasing"]
PARTS: tuple[FeedbackPart, ...] = get_args(FeedbackPart)
