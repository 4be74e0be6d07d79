"""S3 Inventory: the lists of a bucket's objects that S3 itself writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc

from ray_fer import storage
from ray_fer.data.sources.columns import LIST_ERRORS, batches, column_names, ending, guarded, plain
from ray_fer.data.sources.file_sets import files_of, list_each
from ray_fer.data.sources.lists import bucket_objects
from ray_fer.data.sources.spec import Format, Source
from ray_fer.data.sources.tar import images_among
from ray_fer.errors import UserError, as_user_error

_MANIFEST_ERRORS = (*LIST_ERRORS, ValueError, KeyError, TypeError, AttributeError)
_COLUMNS = ("bucket", "key", "size", "etag", "islatest", "isdeletemarker")


class Inventory(Format):
    """The current objects in an S3 Inventory.

    Its files are CSV or Parquet with the columns ``bucket`` and ``key``, and ``size``, ``e_tag``, ``is_latest``,
    ``is_delete_marker`` where the inventory has them; or the inventory's ``manifest.json``, which names them. As S3
    writes them, keys in CSV are URL-encoded.
    """

    endings = (".csv", ".parquet", "manifest.json")
    is_feed = True

    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        """Lists the images in the inventory; ``skipped`` counts old versions and delete markers too."""
        objects = list_each(source, files_of(source, counts), partial(_list_inventory, counts=counts), counts)
        return images_among(source, objects, counts)


def _list_inventory(file: str, counts: Counter[str]) -> Iterator[pa.Table]:
    for part, header in _inventory_files(file):
        with guarded(part):
            yield from _inventory(file, part, header, counts)


def _inventory_files(file: str) -> Iterator[tuple[str, list[str] | None]]:
    """The files of an inventory, with the columns of those that have no header."""
    if not file.lower().endswith(".json"):
        yield file, None
        return
    with as_user_error(f"source={file}: not the manifest of an S3 Inventory", _MANIFEST_ERRORS):
        manifest = json.loads(storage.read_bytes(file))
        bucket = manifest["destinationBucket"].rsplit(":", 1)[-1]
        header = [name.strip() for name in manifest["fileSchema"].split(",")]
        keys = [entry["key"] for entry in manifest["files"]]
        kind = manifest["fileFormat"].lower()
    if kind not in ("csv", "parquet"):
        raise UserError(f"source={file}: an inventory in {kind}; CSV and Parquet can be read")
    for key in keys:
        yield f"s3://{bucket}/{key}", header if kind == "csv" else None


def _inventory(file: str, part: str, header: list[str] | None, counts: Counter[str]) -> Iterator[pa.Table]:
    names = header or column_names(part)
    by_name = {plain(name): name for name in reversed(names)}
    for needed in ("bucket", "key"):
        if needed not in by_name:
            raise UserError(
                f"source={file}: no column {needed}, there are {', '.join(names)}; or name its manifest.json"
            )
    wanted = [name for name in (by_name.get(key) for key in _COLUMNS) if name]
    encoded = ending(part) != ".parquet"
    for table in batches(part, names, wanted, headless=header is not None):
        column = {plain(name): table[name].cast(pa.string()) for name in wanted}
        deleted = pc.equal(pc.utf8_lower(_or(column.get("isdeletemarker"), "false", table)), "true")
        old = pc.equal(pc.utf8_lower(_or(column.get("islatest"), "true", table)), "false")
        key = _decoded(column["key"]) if encoded else column["key"]
        etag, size = _or(column.get("etag"), "", table), _or(column.get("size"), "0", table)
        yield from bucket_objects(column["bucket"], key, etag, size, counts, pc.or_(deleted, old))


def _or(column: Any, default: str, table: pa.Table) -> Any:
    return pa.repeat(default, table.num_rows) if column is None else pc.fill_null(column, default)


def _decoded(keys: Any) -> Any:
    encoded = pc.or_(pc.match_substring(keys, "%"), pc.match_substring(keys, "+"))
    if not pc.any(encoded).as_py():
        return keys
    return pa.array([unquote_plus(key) for key in keys.to_pylist()], pa.string())
