"""What a labelled set says about a teacher's soft labels, and four ways to correct them by it.

All maps take K classes, N rows, and probabilities (N, K). The evidence is what the teacher says of labelled rows that
it has not learnt from: `ray_fer.heads.rounds.cross_fit`, or a held-out half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_fer.evaluation.metrics import confusion_matrix, macro_f1

Floats = NDArray[np.float64]

PSEUDO_COUNT = 5.0
"""Examples without a mistake that are added to each class of a transition."""
_OFFSETS = np.round(np.arange(-1.5, 1.51, 0.1), 1)
_SWEEPS = 3


def transition(probs: Any, labels: Any, pseudo_count: float = PSEUDO_COUNT) -> Floats:
    """Class-wise noise of soft labels, (K, K): row c is what the teacher says, in the mean, of a face of class c.

    T_c = (sum of p_i over y_i = c, + a e_c) / (n_c + a): with few examples, the teacher is believed.

    Args:
        probs: (N, K), of rows that the teacher has not learnt from.
        labels: (N,).
        pseudo_count: a.
    """
    p, y = np.asarray(probs, dtype=np.float64), np.asarray(labels)
    n_classes = p.shape[1]
    summed = np.stack([p[y == c].sum(axis=0) for c in range(n_classes)]) + pseudo_count * np.eye(n_classes)
    normalised: Floats = summed / summed.sum(axis=1, keepdims=True)
    return normalised


def corrected_posteriors(probs: Any, noise: Any, prior: Any) -> Floats:
    """Distributions (N, K) of the true class, where the soft label is read as a mixture of noisy hard ones.

    P(y = c | i) = sum_j p_ij P(y = c | j) with P(y = c | j) = prior_c T_cj / sum_d prior_d T_dj.

    Args:
        probs: (N, K).
        noise: T, see `transition`.
        prior: (K,), of the true classes among these rows; see `class_mix`.
    """
    joint = np.asarray(prior, dtype=np.float64)[:, None] * np.asarray(noise)
    backwards = joint / np.maximum(joint.sum(axis=0), 1e-12)
    corrected: Floats = np.asarray(probs, dtype=np.float64) @ backwards.T
    return corrected


def class_mix(probs: Any, noise: Any, steps: int = 50) -> Floats:
    """Shares of the true classes, (K,), that seen through the noise make the mean of the soft labels (EM).

    pi_c <- pi_c sum_j T_cj q_j / (pi T)_j, from q, which stays on the simplex.
    """
    channel = np.asarray(noise, dtype=np.float64)
    seen = np.asarray(probs, dtype=np.float64).mean(axis=0)
    mix: Floats = seen
    for _ in range(steps):
        mix = mix * (channel @ (seen / np.maximum(mix @ channel, 1e-12)))
    normalised: Floats = mix / mix.sum()
    return normalised


def macro_f1_offsets(probs: Any, labels: Any, n_draws: int = 20, seed: int = 0) -> Floats:
    """What to add to the log-probability of each class so that macro-F1 rises, (K,), shrunk by its standard error.

    Coordinate ascent over a grid; the standard error is that over bootstrap draws of the rows, and an offset counts
    by sign(x) max(|x| - error, 0). One that does not stand out from its error is zero.

    Args:
        probs: (N, K), held out.
        labels: (N,).
        n_draws: of the bootstrap.
        seed: of it.
    """
    logs, y = np.log(np.maximum(np.asarray(probs, dtype=np.float64), 1e-12)), np.asarray(labels)
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(n_draws):
        rows = generator.integers(len(y), size=len(y))
        draws.append(_best_offsets(logs[rows], y[rows]))
    mean, error = np.mean(draws, axis=0), np.std(draws, axis=0, ddof=1)
    shrunk: Floats = np.sign(mean) * np.maximum(np.abs(mean) - error, 0.0)
    return shrunk


def with_offsets(probs: Any, offsets: Any) -> Floats:
    """softmax(log p + offsets), (N, K)."""
    weighted = np.asarray(probs, dtype=np.float64) * np.exp(np.asarray(offsets))
    normalised: Floats = weighted / weighted.sum(axis=1, keepdims=True)
    return normalised


def precision_thresholds(probs: Any, labels: Any, target: float, floor: float = 0.0) -> Floats:
    """The smallest confidence of each class from which on its predictions are right as often as ``target``, (K,).

    The precision is the lower end of Wilson's interval at one standard error; a class that never reaches the target
    gets the confidence at which it comes nearest, and one that is never predicted the floor.
    """
    p, y = np.asarray(probs, dtype=np.float64), np.asarray(labels)
    predicted, confidence = p.argmax(axis=1), p.max(axis=1)
    thresholds = np.full(p.shape[1], floor)
    for c in range(p.shape[1]):
        mine = np.flatnonzero(predicted == c)
        if len(mine):
            order = mine[np.argsort(-confidence[mine])]
            lower = _wilson_lower(np.cumsum(y[order] == c), np.arange(1, len(order) + 1))
            enough = np.flatnonzero(lower >= target)
            last = enough[-1] if len(enough) else int(lower.argmax())
            thresholds[c] = max(floor, confidence[order[last]])
    return thresholds


def _wilson_lower(hits: Any, trials: Any, z: float = 1.0) -> Floats:
    share = hits / trials
    centre = share + z**2 / (2 * trials)
    spread = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    lower: Floats = (centre - spread) / (1 + z**2 / trials)
    return lower


def _best_offsets(logs: Floats, labels: Any) -> Floats:
    n_classes = logs.shape[1]
    offsets = np.zeros(n_classes)
    for _ in range(_SWEEPS):
        before = offsets.copy()
        for c in range(n_classes):
            others = (logs + offsets)[:, [k for k in range(n_classes) if k != c]]
            rivals = others.max(axis=1)
            names = np.array([k for k in range(n_classes) if k != c])[others.argmax(axis=1)]
            scores = [
                macro_f1(confusion_matrix(labels, np.where(logs[:, c] + each > rivals, c, names), n_classes))
                for each in _OFFSETS
            ]
            best = np.flatnonzero(np.array(scores) >= max(scores) - 1e-12)
            offsets[c] = _OFFSETS[best[np.abs(_OFFSETS[best]).argmin()]]
        if (offsets == before).all():
            break
    return offsets
