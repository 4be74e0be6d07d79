"""Lists of URIs, inventories and event records; what is there is told by looking, or by what the list says."""

from __future__ import annotations

import base64
import gzip
import json
import lzma
import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import botocore.exceptions
import pyarrow as pa
import pytest

from ray_fer.data.read import Item, Stat, read_objects
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources import check_sources, list_sources, lists, local_identity
from ray_fer.data.sources.lists import _absolute
from ray_fer.errors import UserError
from tests.data.test_sources_tar import items_of
from tests.shards import hugging_face, parquet_of, tar_of

KEYS = ("faces/a b.jpg", "faces/ä+%.jpg", "faces/plain.png")


def rows_of(path: Path, counts: Counter[str] | None = None, **options: Any) -> list[dict[str, Any]]:
    entry = SourceConfig(uri=str(path), **options)
    return pa.concat_tables(list_sources([entry], Counter() if counts is None else counts)).to_pylist()


def identity(path: Path) -> str:
    return local_identity(path.stat())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URIs that a store which is not there was asked about; it holds ``v2`` of all of them."""
    uris: list[str] = []

    def stat(wanted: list[str]) -> list[Stat]:
        uris.extend(wanted)
        return [("v2", 7) for _ in wanted]

    monkeypatch.setattr(lists, "stat_objects", stat)
    return uris


def test_a_text_list_names_local_objects_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"one")
    (tmp_path / "in" / "no-extension").write_bytes(b"two")
    (tmp_path / "s.tar").write_bytes(tar_of({"./m.jpg": b"three", "n.jpg": b"four"}))
    (tmp_path / "t.parquet").write_bytes(parquet_of({"image": hugging_face([b"five", b"six"])}))
    names = [
        "in/a.jpg",
        "",
        f"{tmp_path}/in/no-extension",
        "gone.jpg",
        "s.tar!/./m.jpg",
        "t.parquet#column=image&row=1",
    ]
    (tmp_path / "list.txt").write_text("\r\n".join([*names, f"file://{tmp_path}/in/a.jpg"]) + "\n")
    counts: Counter[str] = Counter()
    rows = rows_of(tmp_path / "list.txt", counts)
    assert [row["uri"] for row in rows] == [
        f"{tmp_path}/{name.removeprefix(f'{tmp_path}/')}" for name in names if name
    ] + [f"{tmp_path}/in/a.jpg"]
    assert counts == {"listed": 6, "skipped": 1}
    assert {row["source"] for row in rows} == {f"list:{tmp_path}/list.txt"}
    assert [row["identity"] for row in rows][:3] == [
        identity(tmp_path / "in/a.jpg"),
        identity(tmp_path / "in/no-extension"),
        "",
    ]
    reads = list(read_objects([Item(row["uri"], row["identity"], row["size"]) for row in rows], 100))
    assert [read.data for read in reads] == [b"one", b"two", None, b"three", b"six", b"one"]
    assert reads[2].status == "missing"


def test_a_text_list_of_uris_as_programs_write_them(tmp_path: Path) -> None:
    folder = tmp_path / "my faces"
    folder.mkdir()
    (folder / "50%20ä.jpg").write_bytes(b"one")
    (folder / "s.tar").write_bytes(tar_of({"./a%20b.jpg": b"two"}))
    picture = f"{folder}/50%20ä.jpg"
    names = {
        (folder / "50%20ä.jpg").as_uri(): picture,
        (folder / "50%20ä.jpg").as_uri().replace("file://", "file:"): picture,
        "my faces/50%20ä.jpg": picture,
        "./my faces/../my faces//50%20ä.jpg": picture,
        (folder / "s.tar").as_uri() + "!/./a%20b.jpg": f"{folder}/s.tar!/./a%20b.jpg",
        "./my faces/s.tar!/./a%20b.jpg": f"{folder}/s.tar!/./a%20b.jpg",
    }
    (tmp_path / "list.txt").write_text("\ufeff" + "\r".join(names) + "\r")
    rows = rows_of(tmp_path / "list.txt")
    assert [row["uri"] for row in rows] == list(names.values())
    reads = read_objects([Item(row["uri"], row["identity"], row["size"]) for row in rows], 100)
    assert [read.data for read in reads] == [b"one"] * 4 + [b"two"] * 2


def test_relative_paths_on_s3_are_worked_out_and_keys_are_literal(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["./a.jpg", "a.jpg", "../b//c.jpg", "s3://x/./a//../b.jpg", "f.tar!/./a.jpg"]
    found = [_absolute("s3://b/set/list.txt", 1, line, "s3://b/set") for line in lines]
    assert found == ["s3://b/set/a.jpg"] * 2 + ["s3://b/b/c.jpg", "s3://x/./a//../b.jpg", "s3://b/set/f.tar!/./a.jpg"]
    with pytest.raises(UserError, match=r"^source=s3://b/l.txt: row 7: ../a.jpg leads out of the bucket b$"):
        _absolute("s3://b/l.txt", 7, "../a.jpg", "s3://b")


@pytest.mark.parametrize(("cell", "size"), [("123.0", 123), ("7.", 7), (" 8 ", 8), ("", 0), ("nan", 0), ("123", 123)])
def test_sizes_as_programs_write_them(cell: str, size: int, tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "list.csv").write_text(f"url,etag,size\ns3://b/a.jpg,v1,{cell}\ns3://b/b.jpg,v1,5\n")
    assert [row["size"] for row in rows_of(tmp_path / "list.csv", format="list")] == [size, 5]


@pytest.mark.parametrize("cell", ["1e3", "-5", "2.5", "big", "inf", "9" * 30, "0x10"])
def test_a_size_that_is_none_is_named(cell: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"url,etag,size\ns3://b/a.jpg,v1,5\ns3://b/b.jpg,v1,{cell}\n")
    message = f"source={tmp_path}/list.csv: cannot be read (size '{cell}' of s3://b/b.jpg is no whole number of bytes)"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        check_sources([str(tmp_path / "list.csv")])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("l.txt", "a.jpg\nb.jpg\n".encode("utf-16"), "cannot be read (row 1: the text is UTF-16 or UTF-32;"),
        ("l.csv", "uri\nb.jpg\n".encode("utf-16"), "cannot be read (row 1: the text is UTF-16 or UTF-32;"),
        ("l.txt", "a.jpg\r\nb.jpg\r\nä.jpg\r\n".encode("latin-1"), "cannot be read (row 3: not UTF-8 (byte 0xe4);"),
        ("l.csv", "uri,ä\n".encode("latin-1"), "cannot be read (row 1: not UTF-8 (byte 0xe4);"),
        ("l.csv", "uri\nä.jpg\n".encode("latin-1"), "cannot be read ("),
        ("l.txt", b"a.jpg\nb\0.jpg\n", "row 2: "),
        ("l.txt", b"a.jpg\nfile://host/b.jpg\n", "row 2: file://host/b.jpg: not a local path"),
        ("l.txt", b"a.jpg\ns3a://b/b.jpg\n", "row 2: s3a://b/b.jpg: not a local path"),
        ("l.txt", b"a.jpg\n\ns3://b\n", "row 3: 's3://b' names no object"),
        ("l.csv", b"uri;size\na.jpg;1\n", "its columns are separated by ';'; save it with commas"),
        ("l.csv", b"uri\tsize\na.jpg\t1\n", "its columns are separated by '\\t'; save it with commas"),
        ("l.csv", b"uri,uri\na.jpg,b.jpg\n", "two columns uri"),
        ("l.csv", b"uri,size,Size\na.jpg,1,2\n", "two columns size"),
    ],
)
def test_a_list_that_is_none_is_named_with_its_row(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"^{re.escape(f'source={tmp_path}/{name}: {message}')}") as refused:
        rows_of(tmp_path / name, format="list")
    assert len(str(refused.value).splitlines()) == 1


def test_a_shard_in_a_list_is_all_its_images(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar_of({"m.jpg": b"three", "n.jpg": b"four", "n.json": b"{}"}))
    (tmp_path / "list.txt").write_text("s.tar\n")
    assert [item.uri for item in items_of(tmp_path / "list.txt")] == [f"{tmp_path}/s.tar!/{n}.jpg" for n in "mn"]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_etags_of_a_list_are_taken_and_the_others_asked_for(tmp_path: Path, kind: str, asked: list[str]) -> None:
    columns = {
        "n": ["1", "2", "3"],
        "url": [f"s3://b/{key}" for key in KEYS],
        "ETag": ['"v1"', None, "v1"],
        "size": ["5", None, "6"],
    }
    path = tmp_path / f"list.{kind}"
    if kind == "parquet":
        path.write_bytes(parquet_of(columns))
    else:
        lines = [
            ",".join(columns),
            *(
                ",".join(f'"{(c or "").replace(chr(34), chr(34) * 2)}"' for c in row)
                for row in zip(*columns.values(), strict=True)
            ),
        ]
        text = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(text) if kind == "csv.gz" else text)
    rows = sorted(rows_of(path, format="list"), key=lambda row: KEYS.index(row["uri"].removeprefix("s3://b/")))
    assert [(row["identity"], row["size"]) for row in rows] == [("v1", 5), ("v2", 7), ("v1", 6)]
    assert asked == [f"s3://b/{KEYS[1]}"]


def test_relative_places_and_wrong_ones(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "list.csv").write_text("path,label\ns3://b/a.jpg,1\nhttp://b/a.jpg,2\n")
    with pytest.raises(UserError, match=f"^source={tmp_path}/list.csv: row 2: http://b/a.jpg: not a local path"):
        check_sources([str(tmp_path / "list.csv")])
    for text, message in (
        ("a,b\n1,2\n", "column=…: no such column of URIs, there are a, b"),
        ("", "no such column of URIs"),
        ("url\n\xff\n", "cannot be read"),
        ("s3://b/a.jpg\ns3://b/b.jpg\n", "its first line is 's3://b/a.jpg', not a header; without one, call it .txt"),
        ("url,size\ns3://b/a.jpg,big\n", "cannot be read"),
        ("url,size\ns3://b/a.jpg,1,2\n", "cannot be read"),
    ):
        (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=f"^source={tmp_path}/list.csv: .*{message}") as refused:
            check_sources([str(tmp_path / "list.csv")])
        assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(UserError, match="column=uri: no such column"):
        check_sources([SourceConfig(uri=str(tmp_path / "list.csv"), column="uri")])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_inventory_lists_what_is_current(tmp_path: Path, kind: str, asked: list[str]) -> None:
    keys = [*KEYS, "faces/gone.jpg", "faces/old.jpg", "faces/folder/", "notes.txt"]
    encoded = keys if kind == "parquet" else [quote_plus(key, safe="/") for key in keys]
    columns = {
        "bucket": ["b"] * 7,
        "key": encoded,
        "size": ["10"] * 7,
        "e_tag": [f"v{i}" for i in range(7)],
        "is_latest": ["true"] * 4 + ["false", "true", "true"],
        "is_delete_marker": ["false"] * 3 + ["true"] + ["false"] * 3,
    }
    rows = [",".join(f'"{value}"' for value in row) for row in zip(*columns.values(), strict=True)]
    path = tmp_path / "inventory.csv"
    if kind == "csv":
        path.write_text("\n".join([",".join(columns), *rows]))
    else:
        path = tmp_path / "inventory.parquet"
        flags = {name: [value == "true" for value in columns[name]] for name in ("is_latest", "is_delete_marker")}
        path.write_bytes(parquet_of(columns | flags | {"size": list(map(int, columns["size"]))}))
    counts: Counter[str] = Counter()
    found = rows_of(path, counts, format="inventory")
    assert [(row["uri"], row["identity"], row["size"]) for row in found] == [
        (f"s3://b/{key}", f"v{i}", 10) for i, key in enumerate(KEYS)
    ]
    assert {row["source"] for row in found} == {f"inventory:{path}"}
    assert counts == {"listed": 3, "skipped": 4}
    assert not asked


def test_an_inventory_without_what_is_needed(tmp_path: Path) -> None:
    for name, text, message in (
        ("i.csv", "b,k\n1,2\n", "no column bucket, there are b, k; or name its manifest.json"),
        ("manifest.json", "{}", "not the manifest of an S3 Inventory"),
        ("manifest.json", "[", "not the manifest of an S3 Inventory"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"^source={tmp_path}/{name}: {message}"):
            check_sources([SourceConfig(uri=str(tmp_path / name), format="inventory")])


def event(key: str, name: str = "ObjectCreated:Put") -> dict[str, Any]:
    return {
        "eventName": name,
        "s3": {"bucket": {"name": "b"}, "object": {"key": quote_plus(key, safe="/"), "eTag": "v1", "size": 5}},
    }


def test_events_name_what_was_created_and_the_store_says_what_is_there(tmp_path: Path, asked: list[str]) -> None:
    bridge = {"detail-type": "Object Created", "detail": {"bucket": {"name": "b"}, "object": {"key": KEYS[2]}}}
    documents: list[Any] = [
        {"Records": [event(KEYS[0]), event("x.jpg", "ObjectRemoved:Delete"), event(KEYS[0])]},
        event(KEYS[1], "s3:ObjectCreated:CompleteMultipartUpload"),
        {"Body": json.dumps({"Message": json.dumps({"Records": [event("faces/notes.txt")]})})},
        bridge,
        {"Service": "Amazon S3", "Event": "s3:TestEvent"},
        7,
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("\n\n".join(map(json.dumps, documents)))
    counts: Counter[str] = Counter()
    rows = rows_of(path, counts)
    assert [row["uri"] for row in rows] == [f"s3://b/{key}" for key in (KEYS[0], *KEYS)]
    assert {(row["identity"], row["size"], row["source"]) for row in rows} == {("v2", 7, f"events:{path}")}
    assert counts == {"listed": 4, "skipped": 4}
    path.write_text("")
    check_sources([str(path)])
    path.write_text('{"Records": []}\n{"Records"\n')
    with pytest.raises(UserError, match=f"^source={path}: line 2: not JSON"):
        check_sources([str(path)])


@pytest.mark.parametrize("name", ["list.txt", "events.jsonl"])
def test_a_store_that_cannot_be_asked_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(_: list[str]) -> list[Stat]:
        raise botocore.exceptions.NoCredentialsError

    monkeypatch.setattr(lists, "stat_objects", stat)
    (tmp_path / name).write_text("s3://b/a.jpg" if name == "list.txt" else json.dumps(event("a.jpg")))
    with pytest.raises(UserError, match=f"^source={tmp_path}/{name}: cannot be read \\(Unable to locate credentials"):
        check_sources([str(tmp_path / name)])


def test_a_folder_of_lists(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    for name in ("1.txt", "2.txt", "readme.md"):
        (tmp_path / name).write_text("a.jpg\n")
    counts: Counter[str] = Counter()
    assert len(rows_of(tmp_path, counts, format="list")) == 2
    assert counts == {"listed": 2, "skipped": 2}


NOTE = {"Records": [event(KEYS[0])]}
TEXT = json.dumps(NOTE)
BRIDGE = {"detail-type": "Object Created", "detail": {"bucket": {"name": "b"}, "object": {"key": KEYS[0]}}}
TOPIC = {"Type": "Notification", "Message": TEXT}


@pytest.mark.parametrize(
    "document",
    [
        NOTE,
        [event(KEYS[0])],
        {"Records": [{"messageId": "1", "body": TEXT, "attributes": {"n": "1"}, "eventSource": "aws:sqs"}]},
        {"Records": [{"EventSource": "aws:sns", "Sns": {"Type": "Notification", "Message": TEXT}}]},
        {"Messages": [{"MessageId": "1", "Body": TEXT}]},
        {"Messages": [{"Body": json.dumps(TOPIC)}]},
        {"Records": [{"body": json.dumps(TOPIC)}]},
        {"Records": [{"body": json.dumps(BRIDGE)}]},
        {"Records": [{"Sns": {"Message": json.dumps({"Records": [{"body": TEXT}]})}}]},
        json.dumps(TEXT),
        {"body": json.dumps(json.dumps(TEXT))},
        {"Records": [{"kinesis": {"data": base64.b64encode(TEXT.encode()).decode()}}]},
        {"Records": [{"kinesis": {"data": base64.b64encode(json.dumps([NOTE], indent=1).encode()).decode()}}]},
        {"version": "1.0", "requestPayload": NOTE, "responsePayload": None},
        {"EventName": "s3:ObjectCreated:Put", "Key": "b/in/a.jpg", "Records": [event(KEYS[0])]},
        [{"messageId": "1", "body": json.dumps(BRIDGE)}],
        {"detail-type": "x", "detail": {"payload": {"messages": [{"body": "  " + TEXT}]}}},
    ],
    ids=range(17),
)
def test_events_are_found_in_whatever_they_are_wrapped_in(
    document: object, tmp_path: Path, asked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "e.jsonl"
    for text in (json.dumps(document), json.dumps(document, indent=2) + "\n" + json.dumps(document, indent=4)):
        for data in (text.encode(), gzip.compress(text.encode())):  # as deliveries are packed, without an ending
            path.write_bytes(data)
            counts: Counter[str] = Counter()
            assert {row["uri"] for row in rows_of(path, counts)} == {f"s3://b/{KEYS[0]}"}
            assert counts["skipped"] == 0
    assert not caplog.messages


@pytest.mark.parametrize(
    ("text", "skipped", "said"),
    [
        ("", 0, "INFO: no image comes from it, 0 records"),
        ("\n\n", 0, "INFO: no image comes from it, 0 records"),
        ('{"Records": []}\n{"Messages": []}\n[]\n{}', 0, "INFO: no image comes from it, 0 records"),
        (
            json.dumps(event("x.jpg", "ObjectRemoved:Delete")),
            1,
            "WARNING: no image comes from it, 1 records or objects are skipped",
        ),
        ('{"Service":"Amazon S3","Event":"s3:TestEvent"}', 1, "WARNING: no image comes from it, 1 records"),
        (
            json.dumps({"Messages": [{"Body": "hello"}, {"Body": json.dumps({"Event": "s3:TestEvent"})}]}),
            2,
            "WARNING: no image comes from it, 2 records",
        ),
        (json.dumps(event("notes.txt")), 1, "WARNING: no image comes from it, 1 records"),
    ],
)
def test_a_feed_from_which_no_image_comes_says_so(
    text: str, skipped: int, said: str, tmp_path: Path, asked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "e.jsonl").write_text(text)
    counts: Counter[str] = Counter()
    for _ in range(2):  # a run that watches its sources looks at them again and again
        check_sources([str(tmp_path / "e.jsonl")])
        assert not list(list_sources([str(tmp_path / "e.jsonl")], counts))
    assert counts["skipped"] == 2 * skipped
    (record,) = caplog.records
    assert f"{record.levelname}: {record.getMessage()}".replace(f"source={tmp_path}/e.jsonl: ", "").startswith(said)


@pytest.mark.parametrize(
    "text",
    [
        "7",
        '"hello"',
        "[1, 2]",
        '{"a": 1}\n{"b": "{"}',
        json.dumps({"Messages": [{"Body": "not JSON {"}]}),
        json.dumps({"eventName": "PutObject", "requestParameters": {"bucketName": "b", "key": "a.jpg"}}),
        json.dumps({"detail-type": "EC2 Instance State-change", "detail": {"state": "running"}, "resources": ["arn"]}),
        "[" * 900 + "]" * 900,
    ],
)
def test_what_is_no_feed_of_s3_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^source={path}: \\d records, and none of them is an event of S3$"):
        check_sources([str(path)])


@pytest.mark.parametrize("line", ['{"Records": [', "[" * 100_000, "hello", json.dumps(NOTE)[:-2], '{"a": 1} x'])
def test_a_line_that_is_no_json_is_named_before_anything_is_labelled(
    line: str, tmp_path: Path, asked: list[str]
) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text("\n".join([*([json.dumps(NOTE)] * 400), line]))
    with pytest.raises(UserError, match=f"^source={path}: line 401: not JSON$"):
        check_sources([str(path)])


def test_a_row_of_a_list_that_is_wrong_is_named_before_anything_is_labelled(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "l.txt").write_text("s3://b/a.jpg\n" * 600 + "http://b/a.jpg\n")
    with pytest.raises(UserError, match=f"^source={tmp_path}/l.txt: row 601: http://b/a.jpg"):
        check_sources([str(tmp_path / "l.txt")])
    assert len(asked) == 256


def test_a_list_of_which_nothing_is_there_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "l.txt").write_text("a.jpg\nb.jpg\n")
    assert [row["identity"] for row in rows_of(tmp_path / "l.txt")] == ["", ""]
    assert caplog.messages == [
        f"source={tmp_path}/l.txt: none of the 2 objects that it names is there, like {tmp_path}/a.jpg"
    ]
    (tmp_path / "m.txt").write_text("m.txt\nb.jpg\n")
    assert len(rows_of(tmp_path / "m.txt")) == 2
    assert len(caplog.messages) == 1


def test_a_foreign_file_among_lists_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "x.jpg").write_bytes(b"x")
    for name, text in (
        ("0.csv", "a,b\n1,2\n"),
        ("1.csv", "path\n../x.jpg\n"),
        ("2.csv", "path\nhttp://x\n"),
        ("_3.csv", "path\n../y.jpg\n"),
        (".4.csv", "path\n../y.jpg\n"),
        ("5.csv", "path,path\n../y.jpg,../z.jpg\n"),
        ("old.csv", "path\n../y.jpg\n"),
    ):
        (tmp_path / "in" / name).write_text(text)
    counts: Counter[str] = Counter()
    rows = rows_of(tmp_path / "in", counts, format="list", exclude=["old.csv"])
    assert [row["uri"] for row in rows] == [f"{tmp_path}/x.jpg"]
    assert counts == {"listed": 1, "skipped": 6}
    assert sorted(message.split(": ")[0].rsplit("/", 1)[1] for message in caplog.messages) == [
        "0.csv",
        "2.csv",
        "5.csv",
    ]


def test_a_list_may_be_a_field_and_have_sizes_with_a_point(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"one")
    (tmp_path / "p.parquet").write_bytes(
        parquet_of({"image": hugging_face([None]), "n": pa.array(["a.jpg"]).dictionary_encode()})
    )
    for column in ("image.path", "n"):
        (row,) = rows_of(tmp_path / "p.parquet", format="list", column=column)
        assert row["uri"] == str(tmp_path / ("0.jpg" if column == "image.path" else "a.jpg"))
    with pytest.raises(UserError, match=r"column=…: no such column of URIs, there are image.bytes, image.path, n"):
        rows_of(tmp_path / "p.parquet", format="list")
    (tmp_path / "l.csv").write_text("uri,etag,size\ns3://b/a.jpg,v1,3.0\ns3://b/b.jpg,v1,\n")
    assert [row["size"] for row in rows_of(tmp_path / "l.csv")] == [3, 0]


def test_a_folder_of_events_that_is_not_there_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_sources([SourceConfig(uri=str(tmp_path), format="events")])
    assert caplog.messages == [f"source={tmp_path}: no file there"]


@pytest.mark.parametrize("name", ["l.txt", "l.csv", "e.jsonl", "l.txt.gz", "l.txt.xz"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_packed_file_is_one_line(name: str, damage: str, tmp_path: Path) -> None:
    pack = lzma.compress if name.endswith(".xz") else gzip.compress
    packed = bytearray(pack("".join(f"{i}.jpg\n" for i in range(900)).encode()))
    if damage == "cut":
        del packed[len(packed) // 2 :]
    else:
        packed[len(packed) // 2 :] = bytes(255 - byte for byte in packed[len(packed) // 2 :])
    (tmp_path / name).write_bytes(packed)
    with pytest.raises(UserError, match=f"^source={tmp_path}/{name}: ") as refused:
        check_sources([SourceConfig(uri=str(tmp_path / name), format="events" if name == "e.jsonl" else "list")])
    assert len(str(refused.value).splitlines()) == 1
