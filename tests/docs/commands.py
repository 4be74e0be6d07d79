"""The command lines of README.md, CONTRIBUTING.md and the pages under docs/."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
NOT_RUN = "# not run: needs "
_FENCE = re.compile(r"^```sh(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One line of an ``sh`` block.

    Attributes:
        file: Relative to the checkout.
        text: The line as a user types it, without its comment.
        runs: Whether a newcomer can run it, that is, whether its block does not begin with `NOT_RUN`.
    """

    file: str
    text: str
    runs: bool

    @property
    def words(self) -> list[str]:
        """The line as a shell splits it."""
        return shlex.split(self.text)

    @property
    def job(self) -> tuple[str, list[str]] | None:
        """Name and arguments of the job that the line starts, here or on a cluster."""
        words = self.words
        if words[:3] == ["ray", "job", "submit"]:
            words = words[words.index("--") + 1 :]
        if words[0] != "python" or not words[1].startswith("jobs/"):
            return None
        return words[1].removeprefix("jobs/").removesuffix(".py"), words[2:]


def pages() -> list[str]:
    """README.md, then the pages under docs/ in the order of their navigation, then CONTRIBUTING.md."""
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"]
    return ["README.md", *(f"docs/{page}" for page in _leaves(nav)), "CONTRIBUTING.md"]


def commands() -> list[Command]:
    """Every line of every ``sh`` block, once, where it stands first."""
    found: dict[str, Command] = {}
    for page in pages():
        for command in commands_of(page, (ROOT / page).read_text()):
            found.setdefault(command.text, command)
    return list(found.values())


def commands_of(file: str, text: str) -> Iterator[Command]:
    """The lines of the ``sh`` blocks of ``text``; a backslash at the end of a line continues it."""
    for fence in _FENCE.finditer(text):
        body = fence["body"].replace("\\\n", " ")
        runs = not body.startswith(NOT_RUN)
        for line in body.splitlines():
            # Not by shlex, for which a # inside a word begins a comment too.
            if words := shlex.split(re.sub(r"(^|\s)#.*", "", line)):
                yield Command(file, shlex.join(words), runs)


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from _leaves(each)
