"""The items of ``[a,b]`` and ``{key: value}`` in an argument, and text without its quotes.

YAML's own parser is of no use here: it stops at characters that are common in paths, such as ``{``, ``#`` and ``*``.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_CLOSING = {"[": "]", "{": "}"}
_QUOTES = "'\""


class Plain(str):
    """Text that was written without quotes, so that the type of its field decides what value it is."""


def items(text: str, opening: str) -> list[str] | None:
    """The items of ``[a,b]`` or ``{a,b}``, whose bracket is ``opening``, without outer blanks; None for other text."""
    text = text.strip()
    if not (text.startswith(opening) and len(text) > 1 and text.endswith(_CLOSING[opening])):
        return None
    text = text[1:-1]
    ends = _group_ends(text)
    parts, start, place = [], 0, 0
    while place < len(text):
        if text[place] == ",":
            parts.append(text[start:place].strip())
            start = place + 1
        place = ends.get(place, place + 1)
    if last := text[start:].strip():
        parts.append(last)
    return parts


def mapping_items(text: str) -> dict[str, Any] | None:
    """The items of ``{key: value}``, as `unquoted` text; None if ``text`` is not of that form."""
    parts = items(text, "{")
    if parts is None:
        return None
    pairs = {}
    for part in parts:
        key, colon, value = part.partition(":")
        # A colon without a blank is part of the text, as in YAML.
        if not colon or value[:1].strip():
            return None
        pairs[str(unquoted(key.strip()))] = unquoted(value.strip())
    return pairs


def unquoted(text: str) -> str:
    """The contents of a quoted text, in which escapes, commas and outer blanks are kept; other text as `Plain`."""
    if text[:1] and text[0] in _QUOTES and _end_of_quote(text, 0) == len(text):
        try:
            return str(yaml.safe_load(text))
        except yaml.YAMLError:
            pass
    return Plain(text)


def _group_ends(text: str) -> dict[int, int]:
    """The place after the end of each quoted text and bracket, by the place of its start.

    A bracket that is never closed is text.
    """
    ends, open_brackets, place = dict[int, int](), list[int](), 0
    while place < len(text):
        character = text[place]
        if character in _CLOSING:
            open_brackets.append(place)
        elif character in _CLOSING.values():
            matching = [each for each in open_brackets if _CLOSING[text[each]] == character]
            if matching:
                ends[matching[-1]] = place + 1
                del open_brackets[open_brackets.index(matching[-1]) :]
        elif character in _QUOTES and (text[:place].rstrip()[-1:] or ",") in ",:[{":
            end = _end_of_quote(text, place)
            if end is not None:
                ends[place] = end
                place = end
                continue
        place += 1
    return ends


def _end_of_quote(text: str, place: int) -> int | None:
    pattern = r"'(?:[^']|'')*'" if text[place] == "'" else r'"(?:[^"\\]|\\.)*"'
    found = re.compile(pattern).match(text, place)
    return found.end() if found else None
