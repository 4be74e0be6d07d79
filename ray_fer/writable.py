"""A check that a job can write its results, made before it starts to work."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from pathlib import Path

from botocore.exceptions import BotoCoreError

from ray_fer.errors import UserError, as_user_error
from ray_fer.storage import filesystem, is_remote, join, normalise_argument

# As an output, such a path would be a local folder called "s3:", which is a mistake that goes unnoticed.
_ONE_SLASH = re.compile(r"s3[an]?:/(?!/)", re.IGNORECASE)


def check_writable(key: str, uri: str, *, folder: bool = True) -> None:
    """Checks that a job can write to ``uri``; nothing remains of the trial.

    Args:
        key: The argument that gives the URI, for the message.
        uri: A local or ``s3://`` URI, which need not exist yet.
        folder: Whether a folder or prefix will be written, rather than a file.

    Raises:
        UserError: If nothing can be written there; the message names the key.
    """
    if _ONE_SLASH.match(uri):
        raise UserError(f"{key}={uri}: an s3 URI has two slashes, s3://bucket/key")
    uri = normalise_argument(key, uri)
    with as_user_error(f"{key}={uri}: cannot be written"):
        if is_remote(uri):
            _try_remote(uri)
        else:
            if not folder and os.path.isdir(uri):
                raise UserError(f"{key}={uri}: is a folder, not a file")
            _try_local(Path(uri) if folder else Path(uri).parent)


def _try_remote(uri: str) -> None:
    # An upload that is never completed needs the permission to write, and makes neither a version nor an event.
    fs, path = filesystem(join(uri, _probe_name()))
    bucket, _, key = path.partition("/")
    upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    with contextlib.suppress(OSError, BotoCoreError):
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)


def _try_local(folder: Path) -> None:
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    probe = folder / _probe_name()
    try:
        try:
            _write_probe(probe)
        except FileNotFoundError:  # another job has just removed the folder that its own trial made
            _write_probe(probe)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def _write_probe(probe: Path) -> None:
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(b"\0")  # a full disk still takes empty files


def _probe_name() -> str:
    return f".ray-fer-{uuid.uuid4().hex[:8]}.tmp"
