"""The spelling of URIs: which are local paths, which are on S3, and the one form of each."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote_to_bytes

from ray_fer.errors import UserError, prefixed

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_FILE_URI = re.compile(r"file:(?://(?:localhost)?(/.*)|(/(?!/).*))", re.IGNORECASE | re.DOTALL)


def is_remote(uri: str) -> bool:
    """Whether ``uri`` has a scheme other than ``file:``, so that it is not on this machine's file system."""
    return "://" in uri and _SCHEME.match(uri) is not None and not _FILE_URI.fullmatch(uri)


def is_absolute(uri: str) -> bool:
    """Whether ``uri`` is independent of the current folder: a path from ``/`` or ``~``, or any URI."""
    if uri.startswith("~"):
        return os.path.expanduser(uri) != uri  # ~a.jpg is a name that editors give
    return uri.startswith("/") or (":/" in uri and bool(_SCHEME.match(uri) or _FILE_URI.fullmatch(uri)))


def normalise(uri: str) -> str:
    """The one spelling of a URI: an absolute local path, or ``s3://bucket/key`` without a trailing slash.

    Escapes are decoded in ``file:`` URIs (``file:///x``, ``file:/x``, ``file://localhost/x``) and nowhere else. S3 keys
    are literal, so ``//`` and ``..`` stay in them. Symbolic links are not followed.

    Raises:
        UserError: If the scheme is neither ``file:`` nor ``s3://``, a file is on another host, or there is a NUL byte.
    """
    if "\0" in uri:
        raise UserError(f"{uri!r}: a NUL byte in a path")
    if is_remote(uri):
        if not uri.startswith("s3://") or uri.removeprefix("s3://")[:1] in ("", "/"):
            raise UserError(f"{uri}: not a local path and not an s3://bucket/key URI")
        return uri.rstrip("/")
    if found := _FILE_URI.fullmatch(uri):
        # Listings spell names that are not UTF-8 in the same way.
        raw = unquote_to_bytes((found[1] or found[2]).encode("utf-8", "surrogateescape"))
        return normalise(raw.decode("utf-8", "backslashreplace"))
    # abspath keeps two leading slashes.
    return "/" + os.path.abspath(os.path.expanduser(uri)).lstrip("/")


def normalise_argument(key: str, uri: str) -> str:
    """`normalise` the value of the argument ``key``.

    Raises:
        UserError: If `normalise` raises it; the message names the key.
    """
    with prefixed(f"{key}="):
        return normalise(uri)


def join(uri: str, *parts: str) -> str:
    """``uri`` with path segments appended; the segments are literal names, even after a ``file:`` URI with escapes."""
    if _FILE_URI.fullmatch(uri):
        uri = normalise(uri)
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])
