"""Files that are nobody's pictures, and what names them all the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources import list_sources
from tests.shards import tar_of

COMPANIONS = ("._a.jpg", "in/.ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/in/._b.jpg", ".Trash/c.jpg", "._s.tar")


@pytest.fixture
def with_companions(tmp_path: Path) -> Path:
    root = tmp_path / ".cache" / "_faces"  # what the source itself is called says nothing
    for name in (*COMPANIONS, "a.jpg", "in/_DSC1.JPG", "_in/.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    members = {"./._m.jpg": b"x", "__MACOSX/._m.jpg": b"x", "./m.jpg": b"x", "_m/..jpg": b"x"}
    (root / "s.tar").write_bytes(tar_of(members))
    return root


def listed(counts: Counter[str], uri: Path | str, **options: Any) -> list[str]:
    entry = SourceConfig(uri=str(uri), **options)
    return sorted(uri for page in list_sources([entry], counts) for uri in page["uri"].to_pylist())


def test_what_is_nobodys_picture_is_skipped(with_companions: Path) -> None:
    names = ("_in/.jpg", "a.jpg", "in/_DSC1.JPG", "s.tar!/./m.jpg", "s.tar!/_m/..jpg")
    counts: Counter[str] = Counter()
    assert listed(counts, with_companions) == [f"{with_companions}/{name}" for name in names]
    assert counts == {"listed": 5, "skipped": 7}


@pytest.mark.parametrize(
    ("uri", "options", "names"),
    [
        ("._a.jpg", {}, ["._a.jpg"]),
        (".Trash", {}, [".Trash/c.jpg"]),
        ("._*.jpg", {}, ["._a.jpg"]),
        ("**/.ipynb_checkpoints/*", {}, ["in/.ipynb_checkpoints/a-checkpoint.jpg"]),
        ("**/*a*.jpg", {}, ["a.jpg"]),
        ("", {"include": [".Trash/**"]}, [".Trash/c.jpg"]),
        ("", {"include": ["**/c.jpg", "a.jpg"]}, ["a.jpg"]),
    ],
)
def test_who_names_what_is_hidden_means_it(
    uri: str, options: dict[str, Any], names: list[str], with_companions: Path
) -> None:
    found = listed(Counter(), with_companions / uri if uri else with_companions, **options)
    assert found == [f"{with_companions}/{name}" for name in names]


def test_a_hidden_source_inside_another_one_is_listed_too(with_companions: Path) -> None:
    sources = [str(with_companions), str(with_companions / ".Trash"), str(with_companions / "in")]
    found = [uri for page in list_sources(sources, Counter()) for uri in page["uri"].to_pylist()]
    assert len(found) == len(set(found)) == 6
    assert f"{with_companions}/.Trash/c.jpg" in found


def test_a_list_means_what_it_names(with_companions: Path) -> None:
    names = ["._a.jpg", "s.tar!/./._m.jpg", "s.tar"]
    (with_companions / "list.txt").write_text("\n".join(names))
    found = listed(Counter(), with_companions / "list.txt")
    assert found == [
        f"{with_companions}/{name}" for name in ("._a.jpg", "s.tar!/./._m.jpg", "s.tar!/./m.jpg", "s.tar!/_m/..jpg")
    ]


def test_what_is_excluded_is_not_opened(with_companions: Path) -> None:
    (with_companions / "broken-1.tar").write_bytes(b"no tar")
    counts: Counter[str] = Counter()
    found = listed(counts, with_companions, exclude=["broken-*.tar", "s.tar", "*.JPG"])
    assert found == [f"{with_companions}/{name}" for name in ("_in/.jpg", "a.jpg")]
    assert not counts["unlisted"]
