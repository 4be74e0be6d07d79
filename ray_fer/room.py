"""Whether there is room for what a job asks of Ray, and what it says while it waits for some."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ray_fer.errors import UserError

EVERY_SECONDS = 30.0

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Demand:
    """What has to run at the same time.

    Attributes:
        key: the argument that asks for it, as ``workers``.
        count: how many workers.
        share: what each of them takes of one node, by Ray's names of resources.
    """

    key: str
    count: int
    share: Resources

    def __str__(self) -> str:
        each = " each" if self.count > 1 else ""
        return f"{self.count} {'workers' if self.count > 1 else 'worker'} with {describe(self.share)}{each}"


def places(nodes: Sequence[Resources], share: Resources) -> int:
    """How many workers that take ``share`` fit on ``nodes`` while nothing else runs there."""
    wanted = {name: amount for name, amount in share.items() if amount}
    # A tenth of a GPU ten times is a GPU.
    return sum(int(min(node.get(name, 0) / amount for name, amount in wanted.items()) + 1e-6) for node in nodes)


def describe(resources: Resources, names: Sequence[str] = ()) -> str:
    """CPUs and GPUs in words, ``2 CPUs and 1 GPU``; of those not among ``names`` only what there is some of."""
    found = {name: resources.get(name, 0) for name in ("CPU", "GPU") if resources.get(name) or name in names}
    return " and ".join(f"{amount:g} {name}{'' if amount == 1 else 's'}" for name, amount in found.items()) or "nothing"


def check_room(demand: Demand, nodes: Sequence[Resources]) -> None:
    """Refuses what ``nodes``, to which nobody will add one, can never run.

    Raises:
        UserError: naming the key, and the most that there is room for.
    """
    room = places(nodes, demand.share)
    if room >= demand.count:
        return
    has = describe({name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}, ["CPU"])
    most = f"; {demand.key}={room} is the most" if room else ""
    raise UserError(f"{demand.key}={demand.count}: there is no room for {demand}, this machine has {has}{most}")


def waiting_line(demand: Demand, nodes: Sequence[Resources], free: Resources) -> str:
    """What is asked for and what is there.

    Args:
        demand: what waits.
        nodes: of the cluster as it stands.
        free: what of them nothing uses, in all.
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
    """How long a demand has waited, what is to be said of it, and when it is given up.

    Args:
        demand: what waits.
        minutes: to wait for room; None: for ever.
        every: seconds between two lines.
        clock: seconds, from any beginning.
    """

    def __init__(
        self,
        demand: Demand,
        minutes: float | None,
        every: float = EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.demand, self.minutes, self.every, self.clock = demand, minutes, every, clock
        self._since: float | None = clock()
        self._said = self._since

    def note(self, placed: bool) -> None:
        """Takes note that everything asked for runs, or that it waits (again)."""
        if placed:
            self._since = None
        elif self._since is None:
            self._since = self._said = self.clock()

    def look(self, describe_cluster: Callable[[], tuple[Sequence[Resources], Resources]]) -> str | None:
        """The line that is due now, or None.

        Args:
            describe_cluster: asks for what every node has and for what is free in all.

        Raises:
            UserError: after ``minutes``.
        """
        if self._since is None:
            return None
        now = self.clock()
        over = self.minutes is not None and now - self._since >= 60 * self.minutes
        if not over and now - self._said < self.every:
            return None
        self._said = now
        line = waiting_line(self.demand, *describe_cluster())
        if over:
            raise UserError(f"wait_minutes={self.minutes:g}: given up {line}")
        return line
