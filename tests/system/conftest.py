from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.servers import S3Server, running_s3


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A fresh bucket on a real S3 server that the environment points to; its ``s3://`` URI."""
    import s3fs

    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"t{abs(hash(request.node.nodeid)) % 10**12}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A small untrained artifact; labelling does not care how good a teacher is."""
    from tests.images import tiny_model

    return tiny_model(str(tmp_path / "model")).uri
