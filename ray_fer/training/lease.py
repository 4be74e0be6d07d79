"""One run at a time in a folder: a lease with a heartbeat, on a local file system or S3.

A holder keeps ``FOLDER/.lease/NUMBER.json`` and rewrites it every few seconds. Who finds a lease and can show that its
holder is gone takes over by creating the next number, which only one can: a file that must not exist yet is all that is
asked of the storage. The highest number counts. So a holder that stood still (a suspended process, a sleeping laptop)
and was given up meanwhile finds a higher number, or none at all, and stops.

No two clocks are compared. On the machine of the holder its process tells whether it lives; from elsewhere a lease is
given up when it has not changed for a minute by the clock of who waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ray_fer import interruption, storage
from ray_fer.errors import STORE_ERRORS, UserError, as_user_error, one_line

log = logging.getLogger(__name__)

FOLDER = ".lease"
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
_POLL_SECONDS = 1.0


class LeaseLostError(UserError):
    """Another run has taken the folder over."""


@dataclass(frozen=True)
class Lease:
    """What a run holds; may be pickled, so that its workers can look too.

    Attributes:
        out: the folder.
        number: of its lease.
        holder: what the lease calls it; a number that was given back is given again.
    """

    out: str
    number: int
    holder: str

    def check(self) -> None:
        """Looks whether it is still this run's.

        Raises:
            LeaseLostError: when it is not.
            OSError: when the storage does not answer.
        """
        newest = max(_numbers(self.out), default=None)
        if newest != self.number or _read(self.out, newest).get("id") != self.holder:
            raise LeaseLostError(
                f"out={self.out}: this run stood still, and another has taken the folder over or deleted it; stopped"
            )


@contextlib.contextmanager
def held(out: str, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> Iterator[Lease]:
    """Holds the lease of a folder while the block runs; interrupts the main thread when it is lost.

    Args:
        out: the folder.
        beat: seconds between two signs of life.
        stale: seconds without one after which a holder elsewhere is given up.

    Raises:
        UserError: when a run is under way there, or nothing can be written.
        LeaseLostError: from the block, when another run has taken over.
    """
    mine = _holder()
    with as_user_error(f"out={out}: cannot be written"):
        lease = _acquire(out, mine, stale)
    keeper = _Keeper(lease, mine, beat)
    keeper.start()
    try:
        yield lease
    except (KeyboardInterrupt, Exception):
        if keeper.lost is None:
            raise
        interruption.answer()
        raise keeper.lost from None
    finally:
        keeper.stop()
        _release(lease)


class _Keeper(threading.Thread):
    """Gives the signs of life."""

    def __init__(self, lease: Lease, mine: dict[str, Any], beat: float) -> None:
        super().__init__(name="lease", daemon=True)
        self.lease, self.mine, self.beat = lease, mine, beat
        self.lost: LeaseLostError | None = None
        self._over = threading.Event()

    def run(self) -> None:
        """Until the run is over or the lease lost."""
        beats = 0
        while not self._over.wait(self.beat):
            beats += 1
            try:
                self.lease.check()
                storage.write_json(_uri(self.lease.out, self.lease.number), {**self.mine, "beat": beats})
            except LeaseLostError as error:
                if not self._over.is_set():
                    self.lost = error
                    interruption.stop_main(f"error: {error}")
                return
            except STORE_ERRORS as error:  # it may be back before anybody gives this run up
                log.debug("no sign of life in %s: %s", self.lease.out, one_line(error))

    def stop(self) -> None:
        """Ends it; a sign that is being written is waited for, or it would be there after the lease was given back."""
        self._over.set()
        self.join(self.beat)


def _acquire(out: str, mine: dict[str, Any], stale: float) -> Lease:
    while True:
        newest = max(_numbers(out), default=0)
        if newest and (found := _still_held(out, newest, mine, stale)):
            if found.get("id") == mine["id"]:  # a request that was sent twice found its own trace
                return Lease(out, newest, mine["id"])
            since, host, pid = (found.get(key, "?") for key in ("since", "host", "pid"))
            raise UserError(f"out={out}: a run is under way there since {since}, process {pid} on {host}")
        lease = Lease(out, newest + 1, mine["id"])
        if storage.create(_uri(out, lease.number), json.dumps({**mine, "beat": 0}).encode()):
            for number in _numbers(out):
                if number < lease.number:
                    storage.delete(_uri(out, number))
            return lease


def _still_held(out: str, number: int, mine: dict[str, Any], stale: float) -> dict[str, Any] | None:
    """What the holder of a lease says of itself; None when it has gone."""
    first = _read(out, number)
    verdict = judge(first, mine)
    if verdict != "unknown":
        return first if verdict == "alive" else None
    log.info("out=%s: a run has begun there on %s: seeing whether it lives", out, first.get("host", "another host"))
    until = time.monotonic() + stale
    while time.monotonic() < until:
        time.sleep(min(_POLL_SECONDS, stale / 10))
        if number != max(_numbers(out), default=0):
            return None  # given back, or somebody else was first
        if (now := _read(out, number)) != first:
            return now
    return None


def judge(theirs: dict[str, Any], mine: dict[str, Any]) -> Literal["alive", "dead", "unknown"]:
    """What can be told of a holder at once.

    Args:
        theirs: what its lease says; empty when it is half written.
        mine: the same of this process.
    """
    if "machine" not in theirs or theirs["machine"] != mine["machine"]:
        return "unknown"
    return "alive" if _started(theirs["pid"]) == theirs["started"] is not None else "dead"


def _holder() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "started": _started(pid),
        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    }


def _machine() -> str:
    """What two processes have in common that can see each other by process id: host, boot, and container."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return uuid.uuid4().hex  # nothing tells: not even its own


def _started(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None when it has ended or cannot be seen."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _uri(out: str, number: int) -> str:
    return storage.join(out, FOLDER, f"{number:08d}.json")


def _numbers(out: str) -> list[int]:
    names = storage.list_dir(storage.join(out, FOLDER))
    return [int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit()]


def _read(out: str, number: int) -> dict[str, Any]:
    try:
        found = storage.read_json(_uri(out, number))
    except (FileNotFoundError, ValueError):  # taken away, or being written
        return {}
    return found if isinstance(found, dict) else {}


def _release(lease: Lease) -> None:
    try:
        numbers = _numbers(lease.out)
        if max(numbers, default=0) > lease.number or _read(lease.out, lease.number).get("id") != lease.holder:
            return  # somebody else's
        for number in numbers:
            storage.delete(_uri(lease.out, number))
        if not storage.is_remote(lease.out):
            with contextlib.suppress(OSError):  # somebody else's is in there by now
                os.rmdir(storage.join(lease.out, FOLDER))
    except STORE_ERRORS as error:
        log.warning("out=%s: the mark that a run is under way cannot be taken away: %s", lease.out, one_line(error))
