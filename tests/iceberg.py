"""Tables of S3 Metadata as S3 keeps them, in a local Iceberg catalog."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog

# The columns of a journal in AWS's documentation, without the two maps; an inventory lacks the JOURNAL ones.
_SCHEMA = pa.schema(
    [
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("sequence_number", pa.string(), nullable=False),
        pa.field("record_type", pa.string(), nullable=False),
        pa.field("record_timestamp", pa.timestamp("us"), nullable=False),
        ("version_id", pa.string()),
        ("is_delete_marker", pa.bool_()),
        ("size", pa.int64()),
        ("last_modified_date", pa.timestamp("us")),
        ("e_tag", pa.string()),
        ("storage_class", pa.string()),
        ("is_multipart", pa.bool_()),
        ("encryption_status", pa.string()),
        ("is_bucket_key_enabled", pa.bool_()),
        ("kms_key_arn", pa.string()),
        ("checksum_algorithm", pa.string()),
        ("requester", pa.string()),
        ("source_ip_address", pa.string()),
        ("request_id", pa.string()),
    ]
)
_JOURNAL = ("record_type", "record_timestamp", "requester", "source_ip_address", "request_id")


def record(bucket: str, key: str, number: int, e_tag: str | None = None, **others: Any) -> dict[str, Any]:
    """A record of an object; numbered, because sequence numbers are texts that sort as they came."""
    return {
        "bucket": bucket,
        "key": key,
        "sequence_number": f"80e737d8b4{number:08x}",
        "record_type": "CREATE",
        "record_timestamp": datetime(2026, 11, 1),
        "is_delete_marker": False,
        "size": 10,
        "e_tag": e_tag,
    } | others


def deleted(bucket: str, key: str, number: int, **others: Any) -> dict[str, Any]:
    """The record of a permanent deletion."""
    return record(bucket, key, number, record_type="DELETE", is_delete_marker=None, size=None) | others


class MetadataTable:
    """A journal or an inventory in a catalog of its own.

    Args:
        folder: of the catalog.
        kind: ``journal`` or ``inventory``.
        columns: all unless some are named.
        place: where the table's files are; None for ``folder``.

    Attributes:
        settings: environment under which pyiceberg finds the catalog ``meta``.
        name: ``CATALOG.NAMESPACE.TABLE``.
    """

    def __init__(self, folder: Path, kind: str, columns: Sequence[str] = (), place: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        properties = {
            "uri": f"sqlite:///{folder}/catalog.db",
            "warehouse": place or f"file://{folder}",
            "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO",
        }
        self.settings = {
            f"PYICEBERG_CATALOG__META__{name.upper().replace('-', '_')}": value for name, value in properties.items()
        }
        catalog = SqlCatalog("meta", **properties)
        catalog.create_namespace("b_faces")
        dropped = () if kind == "journal" else _JOURNAL
        self._schema = pa.schema(
            [field for field in _SCHEMA if field.name not in dropped and (not columns or field.name in columns)]
        )
        self._table = catalog.create_table(f"b_faces.{kind}", self._schema)
        self.name = f"meta.b_faces.{kind}"

    def append(self, *records: dict[str, Any]) -> None:
        """Commits records as a data file."""
        self._table.append(pa.Table.from_pylist(list(records), self._schema))

    @property
    def uri(self) -> str:
        """URI of the table's metadata as it is now."""
        return str(self._table.refresh().metadata_location)
