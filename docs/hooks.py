"""What mkdocs does here beside rendering: one reference page for each package, and numbers from the benchmarks' files.

A page with ``quotes: true`` in its header is a Jinja2 template over the functions of `benchmarks.quote`, so that no
number of a benchmark is copied by hand. A page with ``source: FILE`` shows that file of the checkout's root.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import quote  # noqa: E402  (the root of the checkout is on the path only now)

# How the pages see what the files in the root link to.
_LINKS = {"](docs/": "](", "](CONTRIBUTING.md": "](contributing.md", "](CHANGELOG.md": "](changelog.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the reference pages to the navigation."""
    config["nav"].append({"Reference": [{_title(page): page} for page in reference_pages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the reference pages, which exist only while the site is built."""
    for page, text in reference_pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the numbers of a page that quotes some, and the text of a page that is a file in the root."""
    if page.meta.get("quotes"):
        environment = Environment(undefined=StrictUndefined, autoescape=False)
        return environment.from_string(markdown).render(vars(quote), numbers_of=numbers_of)
    if source := page.meta.get("source"):
        markdown = (ROOT / source).read_text()
        for link, here in _LINKS.items():
            markdown = markdown.replace(link, here)
    return markdown


def numbers_of(method: str) -> str:
    """The commented YAML of a method's own numbers, as a code block."""
    file = ROOT / "conf" / "methods" / f"{method}.yaml"
    return f"```yaml\n{file.read_text()}```" if file.exists() else ""


def reference_pages() -> dict[str, str]:
    """The Markdown of each reference page by its place: one for each package, and one for the modules above them."""
    package = ROOT / "ray_fer"
    pages = {"reference/ray_fer.md": _page("ray_fer", _modules(package))}
    for folder in sorted(each.parent for each in package.glob("*/__init__.py")):
        pages[f"reference/{folder.name}.md"] = _page(f"ray_fer.{folder.name}", _modules(folder))
    return pages


def _page(name: str, modules: list[str]) -> str:
    parts = [f"# {name}", _docstring(name), *(f"::: {name}.{module}" for module in modules)]
    return "\n\n".join(parts) + "\n"


def _modules(folder: Path) -> list[str]:
    names = [each.stem for each in folder.glob("*.py")]
    names += [each.parent.name for each in folder.glob("*/__init__.py") if folder.name != "ray_fer"]
    return sorted(name for name in names if name != "__init__")


def _docstring(name: str) -> str:
    file = ROOT.joinpath(*name.split("."), "__init__.py")
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def _title(page: str) -> str:
    return page.removeprefix("reference/").removesuffix(".md")
