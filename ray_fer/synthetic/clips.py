"""Expressions in time: clips with a label for every frame.

A clip is a person who moves from rest to an expression and back, several times, while blinking, swaying, sometimes
talking. One frame of it can be ambiguous (a blink, a spoken vowel, a hand, the first tenth of an onset) where its
neighbours are not, and a temporal model uses this.

Timing: an expression has an onset, an apex and an offset whose durations are log-normal about class-typical values
(design, of the order the literature on posed and spontaneous expressions reports: smiles rise in 0.25-0.5 s, surprise
faster, sadness slower). Movement follows the minimum-jerk polynomial 10 s^3 - 15 s^4 + 6 s^5. A frame is labelled with
the class while the intensity is at least 0.3, else neutral. Annotators' delay and disagreement are not simulated: the
labels are exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ray_fer.synthetic.action_units import AU_INDEX, AUS, AuVector, sample_action_units
from ray_fer.synthetic.face import render_face
from ray_fer.synthetic.identity import Identity
from ray_fer.synthetic.nuisance import Nuisance, draw_nuisance

Series = NDArray[np.float64]

LABEL_THRESHOLD = 0.3
"""Intensity, relative to the episode's apex, from which a frame carries its class."""

TIMINGS_S: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "happiness": (0.5, 1.5, 0.8),
        "surprise": (0.15, 0.5, 0.4),
        "sadness": (0.8, 3.0, 1.5),
        "anger": (0.4, 1.5, 0.8),
        "fear": (0.2, 0.8, 0.8),
        "disgust": (0.3, 0.8, 0.5),
        "contempt": (0.3, 0.7, 0.4),
        "other": (0.5, 1.5, 0.8),
    }
)
"""Median onset, apex and offset in seconds."""

AU_LAG_S: Mapping[int, float] = MappingProxyType({6: 0.05, 20: 0.05, 25: 0.05, 26: 0.05, 27: 0.05})
"""Seconds by which an AU follows the others: cheeks after lip corners, the mouth after brows and lids."""

_SECONDS_PER_EPISODE = 2.2


@dataclass(frozen=True, slots=True)
class Episode:
    """One expression of a clip: when it starts, how long its phases take (seconds), and its apex."""

    label: str
    start_s: float
    onset_s: float
    apex_s: float
    offset_s: float
    vector: AuVector

    @property
    def end_s(self) -> float:
        """When the face is back at rest."""
        return self.start_s + self.onset_s + self.apex_s + self.offset_s


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames, uint8 RGB of shape (T, S, S, 3), with T labels and T intensities in [0, 1]."""

    frames: NDArray[np.uint8]
    labels: tuple[str, ...]
    intensity: Series


def minimum_jerk(s: Series) -> Series:
    """The smoothest way from 0 to 1: 10 s^3 - 15 s^4 + 6 s^5, with s clipped to [0, 1]."""
    s = np.clip(s, 0.0, 1.0)
    return np.asarray(s**3 * (10 - 15 * s + 6 * s**2))


def intensity_profile(times_s: Series, episode: Episode) -> Series:
    """Intensity over time, shape as `times_s`: 0 before, up during the onset, 1 at the apex, down, 0 after."""
    rise = minimum_jerk((times_s - episode.start_s) / episode.onset_s)
    fall = minimum_jerk((episode.end_s - times_s) / episode.offset_s)
    return np.minimum(rise, fall)


def draw_episodes(
    rng: np.random.Generator, classes: Sequence[str], duration_s: float, difficulty: float = 0.0
) -> tuple[Episode, ...]:
    """Fill a clip with expressions; the face is neutral before, between and after them.

    There is about one episode per 2.2 seconds, at least one, and no class comes twice in a row if there are two. Phases
    and rests are drawn at their natural length. If their sum exceeds the clip, one common factor shortens them all.
    """
    expressive = [name for name in classes if name != "neutral"]
    count = max(1, round(duration_s / _SECONDS_PER_EPISODE))
    labels: list[str] = []
    for _ in range(count):
        choices = [name for name in expressive if len(expressive) == 1 or not labels or name != labels[-1]]
        labels.append(str(rng.choice(choices)))
    phases = np.array([TIMINGS_S[label] for label in labels]) * np.exp(rng.normal(0, 0.3, (count, 3)))
    rests = rng.uniform(0.25, 0.8, count + 1)
    natural = float(phases.sum() + rests.sum())
    if natural > duration_s:
        phases *= duration_s / natural
        rests *= duration_s / natural
    else:
        rests += (duration_s - natural) / (count + 1)
    episodes = []
    clock = 0.0
    for label, (onset, apex, offset), rest in zip(labels, phases, rests, strict=False):
        vector = sample_action_units(label, rng, difficulty=difficulty)
        episodes.append(Episode(label, clock + rest, float(onset), float(apex), float(offset), vector))
        clock = episodes[-1].end_s
    return tuple(episodes)


def frame_labels(episodes: Sequence[Episode], times_s: Series) -> tuple[str, ...]:
    """The class of every frame: an episode's while its intensity is at least `LABEL_THRESHOLD`, else neutral."""
    labels = ["neutral"] * len(times_s)
    for episode in episodes:
        for frame in np.flatnonzero(intensity_profile(times_s, episode) >= LABEL_THRESHOLD):
            labels[frame] = episode.label
    return tuple(labels)


def au_series(episodes: Sequence[Episode], times_s: Series, rng: np.random.Generator) -> NDArray[np.float64]:
    """AU intensities over time, shape (T, 2, len(AUS)): episodes with lags and an unsteady apex, blinks and speech.

    The apex wavers by an Ornstein-Uhlenbeck process of standard deviation 0.05. Blinks come every 2-6 s and take
    0.15-0.4 s. In 30 % of the clips the mouth also moves at 3-5 Hz.
    """
    steps = len(times_s)
    lags = np.array([AU_LAG_S.get(au, 0.0) for au in AUS])
    waver = _ornstein_uhlenbeck(rng, steps, 0.05)
    series = np.zeros((steps, 2, len(AUS)))
    for episode in episodes:
        lagged = np.column_stack([intensity_profile(times_s - lag, episode) for lag in lags])
        unsteady = lagged * (1 + waver[:, None] * (lagged > 0.9))
        series = np.maximum(series, unsteady[:, None, :] * episode.vector)
    blink, closed = rng.uniform(0.5, 4.0), AU_INDEX[43]
    while blink < times_s[-1]:
        length = rng.uniform(0.15, 0.4)
        lid = minimum_jerk(1 - np.abs(times_s - blink - length / 2) / (length / 2))
        series[:, :, closed] = np.maximum(series[:, :, closed], lid[:, None])
        blink += rng.uniform(2.0, 6.0)
    if rng.random() < 0.3:
        vowel = np.abs(np.sin(np.pi * rng.uniform(3, 5) * times_s + rng.uniform(0, np.pi)))
        for au, strength in ((25, rng.uniform(0.3, 0.7)), (26, rng.uniform(0.1, 0.4))):
            series[:, :, AU_INDEX[au]] = np.maximum(series[:, :, AU_INDEX[au]], strength * vowel[:, None])
    return np.clip(series, 0.0, 1.0)


def _ornstein_uhlenbeck(rng: np.random.Generator, steps: int, sigma: float) -> Series:
    keep = 0.8
    kicks = rng.normal(0, sigma * np.sqrt(1 - keep**2), steps)
    values = np.empty(steps)
    value = rng.normal(0, sigma)
    for step in range(steps):
        value = keep * value + kicks[step]
        values[step] = value
    return values


def _circumstances(rng: np.random.Generator, times_s: Series, difficulty: float) -> list[Nuisance]:
    """One `Nuisance` per frame: the head sways at 0.2-0.5 Hz, the noise is new, and an occluder may pass."""
    start = draw_nuisance(rng, difficulty)
    passing = start.occluder is not None
    begin = rng.uniform(0, times_s[-1])
    length = rng.uniform(0.2, 0.8)
    yaw, roll, across = (
        np.sin(2 * np.pi * rng.uniform(0.2, 0.5) * times_s + rng.uniform(0, 2 * np.pi)) * amplitude
        for amplitude in (np.radians(6), np.radians(3), 0.012)
    )
    moving_blur = np.maximum(rng.gamma(0.5, 0.6, len(times_s)) - 0.4, 0) * difficulty
    frames = []
    for k, time in enumerate(times_s):
        at = start.pose
        pose = replace(at, yaw=at.yaw + yaw[k], roll=at.roll + roll[k], x=at.x + across[k])
        hidden = passing and begin <= time <= begin + length
        frames.append(
            replace(
                start,
                pose=pose,
                blur=start.blur + float(moving_blur[k]),
                occluder=start.occluder if hidden else None,
                occluder_x=start.occluder_x + 0.4 * (time - begin),
                seed=start.seed + k,
            )
        )
    return frames


def draw_clip(
    identity: Identity,
    rng: np.random.Generator,
    *,
    classes: Sequence[str],
    frames: int = 60,
    fps: float = 15.0,
    size: int = 64,
    difficulty: float = 0.5,
) -> Clip:
    """Draw a clip of one person; the same generator state gives the same clip.

    Args:
        identity: Who is seen, from the first frame to the last.
        rng: Source of chance.
        classes: Expressions to draw episodes from; `neutral` is ignored here and always among the labels.
        frames: Number of frames T.
        fps: Frames per second; with `frames`, it decides how many episodes fit.
        size: Side of a frame in pixels.
        difficulty: In [0, 1], as for photos.
    """
    times_s = np.arange(frames) / fps
    episodes = draw_episodes(rng, classes, frames / fps, difficulty)
    vectors = au_series(episodes, times_s, rng)
    circumstances = _circumstances(rng, times_s, difficulty)
    pictures = np.stack([render_face(identity, v, n, size) for v, n in zip(vectors, circumstances, strict=True)])
    intensity = np.max([intensity_profile(times_s, episode) for episode in episodes], axis=0)
    return Clip(pictures, frame_labels(episodes, times_s), intensity)
