"""The site builds strictly and offline, and its pages load nothing from elsewhere."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from tests.docs.commands import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, made without any connection."""

    def refuse(*_: object) -> None:
        raise AssertionError("the build opens a connection")

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return folder


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//|<link[^>]*\shref="(?:https?:)?//')
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    assert [page.name for page in pages if loads.search(page.read_text())] == []


def test_numbers_and_configurations_are_filled_in(site: Path) -> None:
    for page in ("benchmarks", "methods", "selection", "feedback", "teachers", "tutorial", "jobs/pseudo_label"):
        text = (site / f"{page}.html").read_text()
        assert "{{" not in text
        assert "{%" not in text
        assert "--8&lt;--" not in text
    assert "55.0 ± 0.7" in (site / "methods.html").read_text()
    assert "commit_seconds" in (site / "jobs" / "pseudo_label.html").read_text()


def test_the_reference_has_what_the_docstrings_say(site: Path) -> None:
    assert "Curriculum pseudo-labelling" in (site / "reference" / "selection.html").read_text()
    packages = {file.parent.name for file in (ROOT / "ray_fer").glob("*/__init__.py")}
    assert {page.stem for page in (site / "reference").glob("*.html")} == packages | {"ray_fer"}
