"""Source formats: the registry, and that a new format is a class and a line."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from ray_fer.data import uris
from ray_fer.data.formats import FORMATS, Entry, Place, load_format
from ray_fer.data.read import UNKNOWN, Item, Read, ReadBatch, Stat, bounded, read_objects, stat_objects
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources import list_sources
from ray_fer.data.sources.files import stat_files
from ray_fer.data.sources.pages import key_tables
from ray_fer.data.sources.spec import Format, ImageFormat, Source
from ray_fer.data.uris import Face
from tests.images import picture


@dataclass(frozen=True, slots=True)
class ZipMember(Place):
    format: ClassVar[str] = "zip"

    name: str

    @property
    def uri(self) -> str:
        return f"{self.file}!/{self.name}"


class Zip(ImageFormat):
    extensions = (".zip",)

    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        ((identity, _),) = stat_files([source.uri])
        with zipfile.ZipFile(source.uri) as archive:
            keys = [
                (ZipMember(source.uri, entry.filename).uri, identity, entry.file_size) for entry in archive.infolist()
            ]
        yield from key_tables(keys)

    def parse(self, uri: str) -> ZipMember | None:
        file, mark, name = uri.partition(".zip!/")
        return ZipMember(f"{file}.zip", name) if mark else None

    def stat(self, places: Sequence[ZipMember]) -> list[Stat]:
        return stat_files([place.file for place in places])

    def batch(self, item: Item, place: ZipMember, before: ReadBatch | None) -> ReadBatch:
        return ZipBatch(place, item)


class ZipBatch(ReadBatch):
    def __init__(self, place: ZipMember, item: Item) -> None:
        super().__init__(place.file, item)
        self.name = place.name

    def read(self, max_bytes: int) -> list[Read]:
        (item,) = self.items
        with zipfile.ZipFile(self.file) as archive:
            return [bounded(item, item.identity, archive.read(self.name), max_bytes)]


@pytest.fixture
def zipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(FORMATS, "zip", Entry(f"{__name__}:Zip", "!/"))
    path = tmp_path / "faces.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(f"in/{number}.jpg", picture(number))
    return str(path)


def test_a_new_format_is_a_class_and_a_line(zipped: str) -> None:
    counts: Counter[str] = Counter()
    rows = pa.concat_tables(list_sources([zipped], counts)).to_pylist()
    assert [row["uri"] for row in rows] == [f"{zipped}!/in/{number}.jpg" for number in range(3)]
    assert (counts, {row["source"] for row in rows}) == ({"listed": 3}, {zipped})
    items = [Item(row["uri"], row["identity"], row["size"]) for row in rows]
    assert [read.data for read in read_objects(items, 1 << 20)] == [picture(number) for number in range(3)]
    face = Face(9.0, 9.0, 5.0, 0.0).uri_in(items[1].uri)
    assert stat_objects([face, f"{zipped}.zip!/x.jpg"]) == [stat_files([zipped])[0], UNKNOWN]
    assert uris.resolve(str(Path(zipped).parent), "./faces.zip!/in/2.jpg") == items[2].uri


@pytest.mark.parametrize("name", FORMATS)
def test_every_name_is_a_format(name: str) -> None:
    assert isinstance(load_format(name), Format)
    assert SourceConfig(uri="a", format=name).format == name


def test_a_config_is_checked_without_loading_the_formats() -> None:
    heavy = "'ray', 'torch', 'polars', 'deltalake', 'lance', 'pyiceberg', 'ray_fer.data.sources'"
    code = f"import sys, ray_fer.data.source_config; print([name for name in ({heavy}) if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
