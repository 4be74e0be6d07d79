"""Patterns of object names: ``*``, ``?`` and ``[…]`` within a name, ``**`` for folders of any depth.

``[*]``, ``[?]`` and ``[[]`` stand for the characters themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from fsspec.utils import glob_translate

_WILD = re.compile(r"[*?\[]")


def is_glob(path: str) -> bool:
    """Whether ``path`` has wildcards."""
    return _WILD.search(path) is not None


def literal_prefix(pattern: str) -> str:
    """The text that everything that ``pattern`` matches begins with."""
    found = _WILD.search(pattern)
    return pattern[: found.start()] if found else pattern


def translate(pattern: str) -> re.Pattern[str]:
    """The regular expression of ``pattern``, for whole paths.

    Raises:
        ValueError: where ``**`` is only a part of a name.
    """
    return re.compile(glob_translate(pattern))


def may_hold(pattern: str) -> Callable[[str], bool]:
    """A function that tells whether a folder may hold what ``pattern`` matches; no other folder has to be listed."""
    parts = pattern.split("/")
    levels = [translate("/".join(parts[:depth])) for depth in range(1, len(parts))]

    def decide(folder: str) -> bool:
        depth = folder.count("/") + 1
        if "**" in parts[:depth]:
            return True
        return depth <= len(levels) and levels[depth - 1].match(folder) is not None

    return decide


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A function that tells whether any of ``patterns`` matches a path.

    A pattern without a slash is compared with the path's last name alone.

    Raises:
        ValueError: as `translate`.
    """
    names = [translate(pattern) for pattern in patterns if "/" not in pattern]
    paths = [translate(pattern) for pattern in patterns if "/" in pattern]

    def decide(path: str) -> bool:
        name = path.rsplit("/", 1)[-1]
        return any(p.match(name) for p in names) or any(p.match(path) for p in paths)

    return decide
