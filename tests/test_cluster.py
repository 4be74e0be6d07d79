"""Which Ray a job uses, and what is said where none can be used."""

from __future__ import annotations

import http.server
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ray_fer import cluster
from ray_fer.errors import UserError


@pytest.fixture(autouse=True)
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where Ray notes that `ray start` has run
    monkeypatch.setattr(cluster, "_PROBE_SECONDS", 0.3)
    yield
    assert not ray.is_initialized()


def refused(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as error:
        cluster.connect()
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def web() -> Iterator[str]:
    """A port on which something answers that is not Ray."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def silent() -> Iterator[str]:
    """A port on which something listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:8265", "this is where jobs are submitted: `ray job submit"),
        ("https://head", "this is where jobs are submitted"),
        ("ray://127.0.0.1:10001", "jobs cannot run through ray://; `ray job submit`"),
        ("anyscale://mine", "jobs cannot run through anyscale://"),
        ("auto", "no Ray cluster runs on this machine; start one by `ray start --head`"),
        ("127.0.0.1:1", r"nothing answers there \(.*refused\); start Ray there"),
        ("no-such-host.invalid:6379", "nothing answers there"),
        ("127.0.0.1:99999", "nothing answers there"),
        (":6379", "not HOST:PORT"),
        ("127.0.0.1", "not HOST:PORT, auto or local"),
        ("127.0.0.1:", "not HOST:PORT"),
        ("127.0.0.1:port", "not HOST:PORT"),
        ("LOCAL", "not HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(address: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(monkeypatch, address)
    assert message.startswith(f"RAY_ADDRESS={address}: ")
    assert re.search(says, message)


def test_something_else_at_the_address(web: str, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (web, silent):
        assert refused(monkeypatch, address).startswith(
            f"RAY_ADDRESS={address}: what answers there is not the head of a Ray cluster ("
        )


def test_a_cluster_that_is_gone(silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `ray start` has left is not Ray: named, it is refused; unnamed, Ray would be started here."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    assert refused(monkeypatch, "auto").startswith("RAY_ADDRESS=auto: the Ray cluster at 127.0.0.1:1: nothing answers")
    monkeypatch.setenv("RAY_ADDRESS", " ")
    assert cluster.is_local()
    (tmp_path / "ray" / "ray_current_cluster").write_text(silent)
    assert cluster.is_local()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("RAY_TMPDIR", "/tmp/" + 90 * "x", r"cannot exceed 107 bytes.*RAY_TMPDIR names another, short, folder"),
        ("HOME", "/proc/x", r"and to /proc/x/\.ray$"),
    ],
)
def test_where_ray_cannot_start(variable: str, value: str, says: str) -> None:
    """In a process of its own: Ray keeps what it has found out about its token."""
    code = "from ray_fer import cluster; cluster.connect()"
    environment = {key: text for key, text in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": "local", "RAY_TMPDIR": "/tmp", variable: value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    message = done.stderr.splitlines()[-1]
    assert message.startswith("ray_fer.errors.UserError: Ray cannot start on this machine: ")
    assert re.search(says, message)
