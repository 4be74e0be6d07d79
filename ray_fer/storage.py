"""URIs to file systems: one place that knows how a local path and an ``s3://`` URI are opened.

Everything goes through fsspec (s3fs for ``s3://``). Endpoint, region and credentials come from the usual AWS
environment variables, profiles and instance roles (see `s3`), so that nothing secret is ever part of a config or of a
saved artifact.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

import fsspec
import pyarrow.fs
from botocore.exceptions import BotoCoreError

from ray_fer import s3
from ray_fer.errors import UserError, one_line

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_FILE_URI = re.compile(r"file:(?://(?:localhost)?(/.*)|(/(?!/).*))", re.IGNORECASE | re.DOTALL)
# For an output a mistake that would go unnoticed: it would be written into a folder of that name.
_ONE_SLASH = re.compile(r"s3[an]?:/(?!/)", re.IGNORECASE)


def is_remote(uri: str) -> bool:
    """Whether ``uri`` names something that is not on this machine's file system."""
    return "://" in uri and _SCHEME.match(uri) is not None and not _FILE_URI.fullmatch(uri)


def is_absolute(uri: str) -> bool:
    """Whether ``uri`` names the same wherever it stands: a path from ``/`` or ``~``, a ``file:`` or another URI."""
    if uri.startswith("~"):
        return os.path.expanduser(uri) != uri  # editors write ~a.jpg, which is a name
    return uri.startswith("/") or (":/" in uri and bool(_SCHEME.match(uri) or _FILE_URI.fullmatch(uri)))


def normalise(uri: str) -> str:
    """The one spelling of a URI: an absolute local path, or ``s3://bucket/key`` without a trailing slash.

    Escapes are decoded in ``file:`` URIs (``file:///x``, ``file:/x``, ``file://localhost/x``) and nowhere else. Keys
    are literal: ``//`` and ``..`` belong to them. Symbolic links are not followed.

    Raises:
        UserError: for a scheme other than ``file:`` and ``s3://``, a file on another host, and a NUL byte.
    """
    if "\0" in uri:
        raise UserError(f"{uri!r}: a NUL byte in a path")
    if is_remote(uri):
        if not uri.startswith("s3://") or uri.removeprefix("s3://")[:1] in ("", "/"):
            raise UserError(f"{uri}: not a local path and not an s3://bucket/key URI")
        return uri.rstrip("/")
    if found := _FILE_URI.fullmatch(uri):
        # As a listing spells names that are not UTF-8.
        raw = unquote_to_bytes((found[1] or found[2]).encode("utf-8", "surrogateescape"))
        return normalise(raw.decode("utf-8", "backslashreplace"))
    # abspath keeps two slashes at the beginning.
    return "/" + os.path.abspath(os.path.expanduser(uri)).lstrip("/")


def normalise_argument(key: str, uri: str) -> str:
    """`normalise` for what a user gave as ``key``.

    Raises:
        UserError: as `normalise`, naming the key.
    """
    try:
        return normalise(uri)
    except UserError as error:
        raise UserError(f"{key}={error}") from None


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that holds ``uri`` and the path of ``uri`` on it."""
    uri = normalise(uri)
    if is_remote(uri):
        return s3.s3_filesystem(), uri.removeprefix("s3://")
    return fsspec.filesystem("file", auto_mkdir=True), uri


def join(uri: str, *parts: str) -> str:
    """``uri`` with path segments appended; they are names, without escapes also where ``uri`` has some."""
    if _FILE_URI.fullmatch(uri):
        uri = normalise(uri)
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Whether a file or a non-empty prefix is at ``uri``."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def is_dir(uri: str) -> bool:
    """Whether ``uri`` is a folder or a non-empty prefix."""
    fs, path = filesystem(uri)
    return bool(fs.isdir(path))


def list_dir(uri: str) -> list[str]:
    """Names (not paths) directly under ``uri``, sorted; empty where there is nothing."""
    fs, path = filesystem(uri)
    try:
        entries = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    # Consoles mark a folder by an empty object of its own name: it lists itself.
    below = (entry.rstrip("/") for entry in entries)
    return sorted(entry.rsplit("/", 1)[-1] for entry in below if entry != path.rstrip("/"))


def read_bytes(uri: str) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: when there is none.
    """
    fs, path = filesystem(uri)
    data: bytes = fs.cat_file(path)
    return data


def write_bytes(uri: str, data: bytes) -> None:
    """Writes an object whole or not at all: a reader never sees half of it."""
    fs, path = filesystem(uri)
    if is_remote(uri):
        fs.pipe_file(path, data)  # an S3 PUT is atomic
        return
    with _replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


def create(uri: str, data: bytes) -> bool:
    """Writes a small object that must not be there yet; False when it is. Of several that try, one succeeds.

    A reader never sees half of it, unless it lies in a local folder that knows no hard links.
    """
    fs, path = filesystem(uri)
    if is_remote(uri):
        try:
            fs.pipe_file(path, data, mode="create")  # a conditional PUT
        except OSError as error:  # s3fs makes a FileExistsError of AWS's own answer alone
            answer = getattr(error.__cause__, "response", {})
            code = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(error, FileExistsError) or code in (409, 412):
                return False
            if code != 501:  # the server knows no conditions
                raise
            if fs.exists(path):
                return False
            fs.pipe_file(path, data)
        return True
    try:
        with _temporary(Path(path)) as temporary:
            temporary.write_bytes(data)
            try:
                Path(path).hardlink_to(temporary)  # unlike a rename, it fails where there is a file
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
    """A file to write piece by piece, for what is too large for `write_bytes`; there when the block ends, and whole.

    Nothing is there, or what was there before, when the block raises.
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
    """A name beside ``target`` under which nothing is left when the block ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(key: str, uri: str, *, folder: bool = True) -> None:
    """Makes sure that a job can write to ``uri``, and leaves nothing behind.

    Args:
        key: of the argument that names it.
        uri: it need not be there yet.
        folder: whether it is to be a folder or prefix, rather than a file.

    Raises:
        UserError: naming the key, when nothing can be written there.
    """
    if _ONE_SLASH.match(uri):
        raise UserError(f"{key}={uri}: an s3 URI has two slashes, s3://bucket/key")
    uri = normalise_argument(key, uri)
    try:
        if is_remote(uri):
            _try_remote(uri)
        else:
            if not folder and os.path.isdir(uri):
                raise UserError(f"{key}={uri}: is a folder, not a file")
            _try_local(Path(uri) if folder else Path(uri).parent)
    except (OSError, BotoCoreError) as error:
        raise UserError(f"{key}={uri}: cannot be written ({one_line(error)})") from None


def _try_remote(uri: str) -> None:
    # An upload that is never completed needs the right to write, and leaves neither a version nor an event.
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
        except FileNotFoundError:  # another start has just taken its own trial away
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


def read_json(uri: str) -> Any:
    """The JSON document at ``uri``."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, document: Any) -> None:
    """Writes ``document`` as indented JSON, atomically; see `to_json`."""
    write_bytes(uri, (to_json(document, indent=2) + "\n").encode())


def to_json(document: Any, indent: int | None = None) -> str:
    """``document`` as JSON, which knows no NaN and no infinity: a number that is none is null."""
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
    """Deletes a file or everything under a prefix; nothing happens where there is nothing."""
    fs, path = filesystem(uri)
    if not is_remote(uri):
        if fs.exists(path):
            fs.rm(path, recursive=True)
        return
    # Key by key: rm names the prefixes too, which servers with real folders refuse, and takes keys for patterns.
    for key in fs.find(path):
        fs.rm_file(key)


def upload_folder(folder: Path, uri: str, last: str) -> None:
    """Copies the files of a local folder to ``uri``, the file ``last`` after all others.

    Its presence is therefore the mark of a whole copy; that of an older copy there is taken away first.
    """
    delete(join(uri, last))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: name == last):
        write_bytes(join(uri, name), (folder / name).read_bytes())


def node_cache() -> Path:
    """The folder in which the processes of this node and user keep what is made or fetched once."""
    return Path(tempfile.gettempdir()) / f"ray_fer-cache-{os.getuid()}"


def local_copy(uri: str, only: Sequence[str] | None = None) -> Path:
    """A local folder with the contents of the folder ``uri``: itself if local, else a per-node cached download.

    The cache is keyed by the content identity (etag) of every file, so that an overwritten object is fetched anew.

    Args:
        uri: the folder.
        only: copy just the files of these names; nothing else under ``uri`` is even listed.

    Raises:
        FileNotFoundError: when there is nothing to download.
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
    cached = node_cache() / cache_key
    if not cached.exists():
        partial = cached.with_name(f"{cache_key}.{uuid.uuid4().hex[:8]}")
        for name in files:
            target = partial / name[len(path) :].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(fs.cat_file(name))
        try:
            partial.rename(cached)
        except OSError:  # another process of this node was first
            shutil.rmtree(partial)
    return cached


def delta_options(uri: str) -> dict[str, str]:
    """Storage options for ``deltalake``.

    Commits on S3 use conditional puts, so that two writers never overwrite each other's log entry.
    """
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
    """The same as `filesystem` as a pyarrow file system, for libraries that want one (Ray Train, Parquet datasets)."""
    fs, path = filesystem(uri)
    if is_remote(uri):
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path
    return pyarrow.fs.LocalFileSystem(), path
