"""Reading and writing local files and S3 objects by URI.

Everything goes through fsspec (s3fs for ``s3://``). Endpoint, region and credentials come from the usual AWS
environment variables, profiles and instance roles (see `s3`), so that no config and no saved artifact holds a secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow.fs

from ray_fer import s3
from ray_fer.uri import is_absolute as is_absolute
from ray_fer.uri import is_remote as is_remote
from ray_fer.uri import join as join
from ray_fer.uri import normalise as normalise
from ray_fer.uri import normalise_argument as normalise_argument


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that holds ``uri`` and the path of ``uri`` on it."""
    uri = normalise(uri)
    if is_remote(uri):
        return s3.s3_filesystem(), uri.removeprefix("s3://")
    return fsspec.filesystem("file", auto_mkdir=True), uri


def exists(uri: str) -> bool:
    """Whether ``uri`` is a file, a folder or a non-empty prefix."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def is_dir(uri: str) -> bool:
    """Whether ``uri`` is a folder or a non-empty prefix."""
    fs, path = filesystem(uri)
    return bool(fs.isdir(path))


def list_dir(uri: str) -> list[str]:
    """The sorted names (not paths) directly under ``uri``; empty if nothing is there."""
    fs, path = filesystem(uri)
    try:
        entries = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    # Consoles mark a folder by an empty object of its own name, which then lists itself.
    below = (entry.rstrip("/") for entry in entries)
    return sorted(entry.rsplit("/", 1)[-1] for entry in below if entry != path.rstrip("/"))


def read_bytes(uri: str) -> bytes:
    """The contents of the object at ``uri``.

    Raises:
        FileNotFoundError: If there is none.
    """
    fs, path = filesystem(uri)
    data: bytes = fs.cat_file(path)
    return data


def write_bytes(uri: str, data: bytes) -> None:
    """Writes an object atomically: a reader never sees half of it."""
    fs, path = filesystem(uri)
    if is_remote(uri):
        fs.pipe_file(path, data)  # an S3 PUT is atomic
        return
    with _replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


def create(uri: str, data: bytes) -> bool:
    """Writes a small object unless one exists, and returns whether it did; of several concurrent calls, one succeeds.

    A reader never sees half of the object, unless it is on a local file system without hard links.
    """
    fs, path = filesystem(uri)
    if is_remote(uri):
        try:
            fs.pipe_file(path, data, mode="create")  # a conditional PUT
        except OSError as error:  # s3fs raises FileExistsError only for the answer of AWS itself
            answer = getattr(error.__cause__, "response", {})
            code = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(error, FileExistsError) or code in (409, 412):
                return False
            if code != 501:  # the server does not support conditions
                raise
            if fs.exists(path):
                return False
            fs.pipe_file(path, data)
        return True
    try:
        with _temporary(Path(path)) as temporary:
            temporary.write_bytes(data)
            try:
                Path(path).hardlink_to(temporary)  # unlike a rename, this fails if the file exists
            except FileExistsError:
                raise
            except OSError:
                with Path(path).open("xb") as file:
                    file.write(data)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def open_output(uri: str) -> Iterator[IO[bytes]]:
    """Opens a file to write piece by piece, for contents that are too large for `write_bytes`.

    The file appears at ``uri`` when the block ends. If the block raises, ``uri`` stays as it was.
    """
    fs, path = filesystem(uri)
    if is_remote(uri):
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            fs.put_file(file.name, path)
        return
    with _replacing(Path(path)) as temporary, temporary.open("wb") as file:
        yield file


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    with _temporary(target) as temporary:
        yield temporary
        temporary.replace(target)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A path beside ``target`` that the block may write to, and that is deleted when the block ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def read_json(uri: str) -> Any:
    """The JSON document at ``uri``."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, document: Any) -> None:
    """Writes ``document`` as indented JSON, atomically; numbers that are not finite become null."""
    write_bytes(uri, (to_json(document, indent=2) + "\n").encode())


def to_json(document: Any, indent: int | None = None) -> str:
    """``document`` as JSON; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_finite(document), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_finite(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def delete(uri: str) -> None:
    """Deletes a file or everything under a prefix, if it exists."""
    fs, path = filesystem(uri)
    if not is_remote(uri):
        if fs.exists(path):
            fs.rm(path, recursive=True)
        return
    # rm would also delete prefixes, which servers with real folders refuse, and would read keys as patterns.
    for key in fs.find(path):
        fs.rm_file(key)


def upload_folder(folder: Path, uri: str, last: str) -> None:
    """Copies the files of a local folder to ``uri``, the file ``last`` after all others.

    A folder that has ``last`` is therefore complete. The file ``last`` of an older copy is deleted first.
    """
    delete(join(uri, last))
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: (name == last, name)):
        write_bytes(join(uri, name), (folder / name).read_bytes())


def node_cache() -> Path:
    """The folder in which the processes of this node and user keep files that are made or fetched once."""
    return Path(tempfile.gettempdir()) / f"ray_fer-cache-{os.getuid()}"


def cached_folder(key: str, make: Callable[[Path], None]) -> Path:
    """The folder ``key`` of `node_cache`, which the first process that asks for it makes.

    Args:
        key: A relative path that identifies the contents of the folder.
        make: Makes the folder at the path that it is given; the parents of that path may not exist yet.
    """
    cached = node_cache() / key
    if not cached.exists():
        partial = cached.with_name(f"{cached.name}.{uuid.uuid4().hex[:8]}")
        make(partial)
        try:
            partial.rename(cached)
        except OSError:  # another process of this node was first
            shutil.rmtree(partial)
    return cached


def local_copy(uri: str, only: Sequence[str] | None = None) -> Path:
    """A local folder with the contents of the folder ``uri``: itself if local, else a per-node cached download.

    The cache is keyed by the content identity (etag) of every file, so that an overwritten object is fetched anew.

    Args:
        uri: The folder, local or ``s3://``.
        only: The names of the files to copy; None copies all. Other files under ``uri`` are not even listed.

    Raises:
        FileNotFoundError: If there is nothing to download.
    """
    fs, path = filesystem(uri)
    if not is_remote(uri):
        return Path(path)
    if only is None:
        found = fs.find(path, detail=True).items()
    else:
        if missing := [name for name in only if not fs.isfile(f"{path}/{name}")]:
            raise FileNotFoundError(join(uri, missing[0]))
        found = [(f"{path}/{name}", fs.info(f"{path}/{name}")) for name in only]
    files = {name: entry for name, entry in found if not name.endswith("/")}
    if not files:
        raise FileNotFoundError(uri)
    identity = [(name, entry.get("ETag") or str(entry.get("LastModified"))) for name, entry in sorted(files.items())]
    cache_key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    def download(folder: Path) -> None:
        for name in files:
            target = folder / name[len(path) :].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(fs.cat_file(name))

    return cached_folder(cache_key, download)


def delta_options(uri: str) -> dict[str, str]:
    """Storage options for ``deltalake``; commits on S3 are conditional, so two writers never overwrite a log entry."""
    return {"aws_conditional_put": "etag"} | s3.object_store_options(_bucket(uri)) if is_remote(uri) else {}


def lance_options(uri: str) -> dict[str, str]:
    """Storage options for ``lance``."""
    return s3.object_store_options(_bucket(uri)) if is_remote(uri) else {}


def polars_arguments(uri: str) -> dict[str, Any]:
    """Arguments for the ``scan_…`` functions of polars."""
    return s3.polars_arguments(_bucket(uri)) if is_remote(uri) else {}


def _bucket(uri: str) -> str:
    return uri.removeprefix("s3://").partition("/")[0]


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Like `filesystem`, but a pyarrow file system, for Ray Train and Parquet data sets."""
    fs, path = filesystem(uri)
    if is_remote(uri):
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path
    return pyarrow.fs.LocalFileSystem(), path
