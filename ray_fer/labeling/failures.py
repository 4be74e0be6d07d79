"""When so many images fail that something else than the images is wrong."""

from __future__ import annotations

import math
from collections import Counter

from ray_fer.errors import UserError
from ray_fer.labeling.progress import Progress, failures_in

FEWEST_FOR_SHARE = 1000
# Strict, for bad images come in clumps.
CHANCE = 1e-9


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


def check(progress: Progress, share: float, most: int | None) -> None:
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
        UserError: as `check`.
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
