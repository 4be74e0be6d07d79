"""Patterns, and which of what a source holds is wanted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources import check_sources, list_sources
from ray_fer.data.sources.globs import literal_prefix, matcher, may_hold, translate
from ray_fer.errors import UserError

FILES = (
    "faces/a/2024-01/x-1.jpg",
    "faces/a/2024-01/y-1.jpg",
    "faces/a/2023-12/x-2.jpg",
    "faces/b/2024-02/deep/x-3.jpg",
    "faces/b/x-4.JPG",
    "faces/x-5.jpg",
    "other/2024-01/x-6.jpg",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def listed(root: Path, *sources: SourceConfig | str) -> list[str]:
    pages = list_sources(sources, Counter())
    return sorted(str(Path(uri).relative_to(root)) for page in pages for uri in page["uri"].to_pylist())


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("faces/*/2024-*/*.jpg", (0, 1)),
        ("faces/**/x-*.jpg", (0, 2, 3, 5)),
        ("faces/**/2024-*/**/*.jpg", (0, 1, 3)),
        ("faces/[ab]/x-?.JPG", (4,)),
        ("*/2024-0[1-9]/*", (6,)),
        ("**", range(7)),
    ],
)
def test_a_pattern_lists_what_it_matches(root: Path, pattern: str, wanted: tuple[int, ...]) -> None:
    assert listed(root, f"{root}/{pattern}") == sorted(FILES[i] for i in wanted)


def test_other_folders_are_not_looked_into() -> None:
    enter = may_hold("/data/faces/*/2024-*/*.jpg")
    assert [enter(f"/data/{name}") for name in ("faces", "faces/a", "faces/a/2024-01", "other")] == [True] * 3 + [False]
    assert [enter(f"/data/faces/a/{name}") for name in ("2023-01", "2024-01/deep")] == [False, False]
    assert may_hold("/data/**/x.jpg")("/data/any/depth/at/all")


def test_s3_lists_by_the_longest_literal_prefix() -> None:
    assert literal_prefix("s3://bucket/faces/part-*/x.jpg") == "s3://bucket/faces/part-"
    assert literal_prefix("s3://bucket/faces") == "s3://bucket/faces"
    assert translate("s3://bucket/**/x-*.jpg").match("s3://bucket/x-\n.jpg")
    assert not translate("s3://bucket/*.jpg").match("s3://bucket/deep/x.jpg")


def test_a_name_with_brackets_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "run[1]").mkdir()
    (tmp_path / "run[1]" / "a.jpg").write_bytes(b"x")
    assert listed(tmp_path, str(tmp_path / "run[1]")) == ["run[1]/a.jpg"]


def test_include_and_exclude(root: Path) -> None:
    entry = SourceConfig(uri=str(root), include="x-*", exclude=["faces/*/2023-*/**", "*.JPG"])
    assert listed(root, entry) == sorted(FILES[i] for i in (0, 3, 5, 6))
    assert matcher(["*.jpg"])("any/depth/a.jpg")
    assert not matcher(["a/*.jpg"])("a/b/c.jpg")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("/data/a**b/*.jpg", r"uri=/data/a\*\*b/\*\.jpg: Invalid pattern"),
        (SourceConfig(uri="/data", exclude="x**"), r"source=/data: exclude=x\*\*: Invalid pattern"),
        ("s3://buck*/x.jpg", "no wildcards in a bucket's name"),
        ("gs://bucket/x", "source=gs://bucket/x: not a local path"),
        ("/nowhere/*.jpg", "source=/nowhere/.*: no such folder as /nowhere"),
        ("/data/faces.tar.gz", "compressed tar cannot be read in place"),
        ("/data/a.tar!/b.jpg", "single image of a shard or a table"),
        (SourceConfig(uri="/data", column="image"), "column=image: only parquet, lance, list have columns"),
    ],
)
def test_what_cannot_be_meant_is_one_line(entry: str | SourceConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        check_sources([entry])
    assert len(str(refused.value).splitlines()) == 1


def test_a_pattern_of_folders_is_explained(root: Path) -> None:
    with pytest.raises(UserError, match="no image there; a pattern names objects, not folders"):
        check_sources([f"{root}/faces/a/20*"])
