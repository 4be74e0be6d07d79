"""Gateways and proxies that tell other ETags than the store: every image is labelled once all the same."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.data.sources.etags import plain_etag
from ray_fer.data.uris import split_face
from ray_fer.errors import UserError
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.labeling.run import READ_OTHERWISE
from tests.images import picture
from tests.photos import ONE, THREE, photo
from tests.shards import hugging_face, parquet_of, tar_of
from tests.system.faults import proxy
from tests.system.servers import S3Server
from tests.system.test_pseudo_label import rows_of


@contextlib.contextmanager
def behind(server: S3Server, monkeypatch: pytest.MonkeyPatch, **rewriting: Any) -> Iterator[None]:
    """The environment points to a `proxy` before ``server``."""
    import s3fs

    with proxy(server.endpoint, **rewriting) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    s3fs.S3FileSystem.clear_instance_cache()


def label(*arguments: str) -> dict[str, Any]:
    return pseudo_label(load_config("pseudo_label", [*arguments, "engine=torch"]))


def statuses(table: str) -> list[tuple[str, str]]:
    return sorted((str(row["uri"]).rsplit("/", 1)[-1], str(row["status"])) for row in rows_of(table))


def with_r(etag: str) -> str:
    return f'"r{etag[1:]}' if etag.startswith('"') else etag


def filled(s3: str, count: int) -> list[str]:
    names = [f"{i}.jpg" for i in range(count)]
    storage.filesystem(s3)[0].pipe({f"{s3}/in/{name}": picture(i) for i, name in enumerate(names)})
    return names


def test_an_image_is_labelled_once_whatever_a_gateway_makes_of_its_etag(
    s3: str,
    s3_server: S3Server,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    table, names = str(tmp_path / "table"), filled(s3, 6)
    arguments = (f"source={s3}/in", f"teacher={model}", f"table={table}")
    caplog.set_level(logging.WARNING)
    with behind(s3_server, monkeypatch, etag=with_r):
        first = label(*arguments)
        assert (first["labelled"], first["read_otherwise"]) == (6, 6)
        warning = f"6 of 6 {READ_OTHERWISE}"
        assert first["warning"] == warning
        assert [record.getMessage() for record in caplog.records].count(warning) == 1
        assert all(row["identity"] == f"r{row['listed_identity']}" for row in rows_of(table))
        second = label(*arguments)
        assert (second["already_labelled"], second["labelled"], second["gone"]) == (6, 0, 0)
        dry = label(*arguments, "dry_run=true")
        assert (dry["counts"]["done"], dry["counts"]["gone"], dry["to_label"]) == (6, 0, 0)
    assert label(*arguments)["already_labelled"] == 6
    assert statuses(table) == [(name, "ok") for name in names]


@pytest.mark.fault
@pytest.mark.slow
def test_gateways_come_and_go(
    s3: str, s3_server: S3Server, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, names = str(tmp_path / "table"), filled(s3, 6)
    arguments = (f"source={s3}/in", f"teacher={model}", f"table={table}")
    assert (first := label(*arguments))["labelled"] == 6
    assert "warning" not in first
    with behind(s3_server, monkeypatch, etag=lambda etag: f"W/{etag}", listed=lambda etag: f"W/{etag}"):
        assert label(*arguments)["already_labelled"] == 6
    # One that lists what nobody has seen: read once more, and known from then on.
    with behind(s3_server, monkeypatch, listed=lambda _: "listed"):
        once_more = label(*arguments)
        assert (once_more["already_labelled"], once_more["labelled"], once_more["read_otherwise"]) == (6, 0, 6)
        marked = sorted((name, status) for name in names for status in ("ok", "known"))
        assert statuses(table) == marked
        afterwards = label(*arguments)
        assert (afterwards["already_labelled"], afterwards["read_otherwise"], afterwards["gone"]) == (6, 0, 0)
    assert label(*arguments)["already_labelled"] == 6
    assert statuses(table) == marked
    storage.write_bytes(f"{s3}/in/0.jpg", picture(99))
    storage.filesystem(s3)[0].rm(f"{s3}/in/1.jpg")
    changed = label(*arguments)
    assert (changed["labelled"], changed["gone"]) == (1, 1)


@pytest.mark.fault
@pytest.mark.slow
def test_shards_tables_and_inventories_behind_a_gateway(
    s3: str, s3_server: S3Server, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.removeprefix("s3://")
    storage.write_bytes(f"{s3}/in/s.tar", tar_of({f"{i}.jpg": picture(i) for i in range(3)}))
    storage.write_bytes(f"{s3}/t.parquet", parquet_of({"image": hugging_face([picture(i) for i in range(3, 6)])}))
    storage.write_bytes(f"{s3}/loose/6.jpg", picture(6))
    stored = storage.filesystem(s3)[0].info(f"{s3}/loose/6.jpg")["ETag"]
    storage.write_bytes(
        f"{s3}/inventory.csv", f"bucket,key,etag\n{bucket},loose/6.jpg,{stored.strip(chr(34))}".encode()
    )
    entries = [f"- {s3}/in", f"- {{uri: {s3}/t.parquet, format: parquet}}"]
    inventory = f"- {{uri: {s3}/inventory.csv, format: inventory}}"
    for name, rewriting, sources, images in (
        ("weakened", {"etag": lambda etag: f"W/{etag}"}, [*entries, inventory], 7),
        ("none", {"etag": lambda _: ""}, [*entries, f"- {s3}/loose"], 7),
        ("other", {"etag": with_r, "listed": lambda _: "other"}, [entries[1], inventory], 4),
    ):
        (tmp_path / f"{name}.yaml").write_text("\n".join(sources))
        arguments = (f"source={tmp_path / name}.yaml", f"teacher={model}", f"table={tmp_path / name}")
        with behind(s3_server, monkeypatch, **rewriting):
            assert label(*arguments)["statuses"] == {"ok": images}
            assert label(*arguments)["labelled"] == 0
    # Its index was kept when no gateway was there: the first run finds that it does not fit.
    arguments = (f"source={s3}/in", f"teacher={model}", f"table={tmp_path / 'shard'}")
    with behind(s3_server, monkeypatch, etag=with_r):
        with pytest.raises(
            UserError, match=r"3 of 3 images failed \(3 missing\), most often: its shard was overwritten"
        ):
            label(*arguments)
        assert label(*arguments)["statuses"] == {"ok": 3}
        assert label(*arguments)["labelled"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("faces", ["none", "detect"])
def test_a_list_that_names_an_object_under_several_etags(faces: str, s3: str, model: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{s3}/a.jpg", photo(ONE))
    storage.write_bytes(f"{s3}/b.jpg", photo(THREE))
    now = [plain_etag(storage.filesystem(s3)[0].info(f"{s3}/{name}.jpg")["ETag"]) for name in "ab"]
    lines = [f"{s3}/a.jpg,old", f"{s3}/b.jpg,{now[1]}", f"{s3}/a.jpg,{now[0]}", f"{s3}/a.jpg,older", f"{s3}/b.jpg,old"]
    storage.write_bytes(f"{s3}/list.csv", "\n".join(["uri,etag", *lines]).encode())
    arguments = (f"source={s3}/list.csv", f"teacher={model}", f"table={tmp_path / 'table'}", f"faces={faces}")
    pictures = {name: 3 if faces == "detect" and name == "b" else 1 for name in "ab"}
    for _ in range(3):
        label(*arguments)
        found = Counter(
            (split_face(str(row["uri"]))[0].rsplit("/", 1)[-1][0], row["identity"], row["status"])
            for row in rows_of(str(tmp_path / "table"))
        )
        marks = {("a", now[0], "known"): 2, ("b", now[1], "known"): 1}
        assert found == {(name, etag, "ok"): pictures[name] for name, etag in zip("ab", now, strict=True)} | marks
    dry = label(*arguments, "dry_run=true")
    assert (dry["counts"]["done"], dry["to_label"]) == (5, 0)
