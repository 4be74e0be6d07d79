"""Whether a cluster has room for the workers of a job, and the messages of a job that waits for room."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ray_fer.errors import UserError

EVERY_SECONDS = 30.0
"""Seconds between two messages of a job that waits."""

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Demand:
    """Workers that have to run at the same time.

    Attributes:
        key: The argument that sets their number, such as ``workers``.
        count: The number of workers.
        share: The resources that each worker takes of one node, by Ray's names.
    """

    key: str
    count: int
    share: Resources

    def __str__(self) -> str:
        each = " each" if self.count > 1 else ""
        return f"{self.count} {'workers' if self.count > 1 else 'worker'} with {describe(self.share)}{each}"


def places(nodes: Sequence[Resources], share: Resources) -> int:
    """The number of workers taking ``share`` that fit on ``nodes`` while nothing else runs there."""
    wanted = {name: amount for name, amount in share.items() if amount}
    # Ten workers with a tenth of a GPU fit on one GPU in spite of rounding.
    return sum(int(min(node.get(name, 0) / amount for name, amount in wanted.items()) + 1e-6) for node in nodes)


def describe(resources: Resources, names: Sequence[str] = ()) -> str:
    """CPUs and GPUs in words, such as ``2 CPUs and 1 GPU``; a number of zero is left out unless it is in ``names``."""
    found = {name: resources.get(name, 0) for name in ("CPU", "GPU") if resources.get(name) or name in names}
    return " and ".join(f"{amount:g} {name}{'' if amount == 1 else 's'}" for name, amount in found.items()) or "nothing"


def check_room(demand: Demand, nodes: Sequence[Resources]) -> None:
    """Checks that a demand fits on ``nodes``, to which none will be added.

    Raises:
        UserError: If it does not fit; the message names the key and the largest number that fits.
    """
    room = places(nodes, demand.share)
    if room >= demand.count:
        return
    has = describe({name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}, ["CPU"])
    most = f"; {demand.key}={room} is the most" if room else ""
    raise UserError(f"{demand.key}={demand.count}: there is no room for {demand}, this machine has {has}{most}")


def waiting_line(demand: Demand, nodes: Sequence[Resources], free: Resources) -> str:
    """The message that tells what a job waits for and what the cluster has.

    Args:
        demand: The workers that wait.
        nodes: The resources of every node of the cluster.
        free: The sum of the resources that are not in use.
    """
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    asked = [name for name, amount in demand.share.items() if amount]
    there, unused = describe(total, asked), describe(free, asked)
    count = "is 1 node" if len(nodes) == 1 else f"are {len(nodes)} nodes"
    return (
        f"waiting for {demand}: there {count} with {there}, free of it {unused}; "
        f"empty, it would have room for {places(nodes, demand.share)}"
    )


class Patience:
    """Measures how long a demand has waited, says so at intervals, and gives up in the end.

    Args:
        demand: The workers that wait.
        minutes: Minutes to wait for room; None waits for ever.
        clock: Returns the time in seconds, from any origin.
    """

    def __init__(
        self,
        demand: Demand,
        minutes: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.demand, self.minutes, self.clock = demand, minutes, clock
        self._since: float | None = clock()
        self._said = self._since

    def note(self, placed: bool) -> None:
        """Records that all workers run (``placed``), or that they wait."""
        if placed:
            self._since = None
        elif self._since is None:
            self._since = self._said = self.clock()

    def look(self, describe_cluster: Callable[[], tuple[Sequence[Resources], Resources]]) -> str | None:
        """The message that is due now, or None.

        Args:
            describe_cluster: Returns the resources of every node, and the sum of those that are not in use.

        Raises:
            UserError: If the workers have waited for ``minutes``.
        """
        if self._since is None:
            return None
        now = self.clock()
        over = self.minutes is not None and now - self._since >= 60 * self.minutes
        if not over and now - self._said < EVERY_SECONDS:
            return None
        self._said = now
        line = waiting_line(self.demand, *describe_cluster())
        if over:
            raise UserError(f"wait_minutes={self.minutes:g}: given up {line}")
        return line
