"""The one spelling of an ETag, wherever it comes from: a listing, a HEAD or GET request, or a list made by others.

S3 quotes ETags, inventories do not, and servers in between change more: nginx and CloudFront weaken them (``W/"…"``),
Apache, LiteSpeed and others append how they packed the answer (``"…-gzip"``, ``"…;br"``). The object is the same with
and without. No ETag of S3 itself ends so: it is a hexadecimal number, with ``-`` and the number of parts behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

# Both Python's and Arrow's regular expressions read these.
_PLAIN = r"^[0-9A-Za-z]*(?:-[0-9]+)?$"
_QUOTES = r'(?:\s|"|&quot;|&#34;)*'
_ETAG = rf"^{_QUOTES}(?:[Ww]/)?{_QUOTES}(.*?){_QUOTES}(?:[-;:+]+(?:gzip|gz|br|deflate|zstd))?{_QUOTES}$"
_COMPILED = re.compile(_ETAG)


def plain_etag(etag: str) -> str:
    """``etag`` without quotes, mark of weakness, surrounding space and the name of a transfer encoding."""
    plain = etag.strip('"')
    if plain.isalnum():  # nearly all are
        return plain
    number, _, parts = plain.partition("-")
    if number.isalnum() and parts.isdigit():
        return plain
    match = _COMPILED.match(etag)
    return match[1] if match else etag


def plain_etags(etags: pa.Array | pa.ChunkedArray) -> Any:
    """`plain_etag` of every string of a column."""
    etags = pc.utf8_trim(etags, characters='"')
    odd = pc.invert(pc.match_substring_regex(etags, _PLAIN))
    if not pc.any(odd).as_py():
        return etags
    if isinstance(etags, pa.ChunkedArray):
        etags, odd = etags.combine_chunks(), odd.combine_chunks()
    return pc.replace_with_mask(etags, odd, pc.replace_substring_regex(etags.filter(odd), _ETAG, r"\1"))


def object_identity(answer: Mapping[str, Any], size: int) -> str:
    """The identity of an object on S3: its ETag or, where a store or a proxy gives none, size and time of change.

    Args:
        answer: an entry of a listing, or the answer to a request for the object.
        size: of the whole object, in bytes.
    """
    if etag := answer.get("ETag"):
        return plain_etag(etag)
    changed = answer.get("LastModified")
    return f"{size}-{int(changed.timestamp())}" if changed else ""
