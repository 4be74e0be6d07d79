"""One HTML page that can be mailed, archived or opened from a bucket: no scripts, no fonts, no links to anything.

The markup stands in ``templates/``. Jinja2 escapes every text, because class names and file names come from users.
Pictures travel inside the page as data: URIs, a third larger than the PNG; a typical evaluation is about half a
megabyte. The page follows the reader's light or dark setting; pictures keep a white ground in both, so their colours
stay the tested ones.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jinja2
import numpy as np

from ray_fer.reports.plot_style import DPI

_PIXELS_PER_INCH = 82


class Report:
    """A page that is built from top to bottom.

    Every method adds one part and returns the report, so that calls chain. Numbers are shown the same way everywhere:
    integers with thousands separators, other numbers with three decimals, None and NaN as n/a.

    Args:
        title: The heading of the page.
        subtitle: The line below it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._subtitle = subtitle
        self._parts: list[dict[str, Any]] = []

    def section(self, heading: str, text: str = "") -> Self:
        """Add a heading, with a paragraph below it if there is text."""
        self._add("section", heading=heading)
        return self.text(text) if text else self

    def text(self, text: str) -> Self:
        """Add a paragraph of plain text."""
        return self._add("text", text=text)

    def key_numbers(self, numbers: Mapping[str, object]) -> Self:
        """Add a row of large numbers, {label: value}."""
        return self._add("key_numbers", numbers=numbers)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> Self:
        """Add a table; a column whose values are all numbers or missing is aligned on the right.

        Raises:
            ValueError: A row does not have one value per column.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row of {len(row)} values in a table of {len(columns)} columns: {list(row)}")
        numeric = [all(_is_number(row[k]) for row in rows) for k in range(len(columns))]
        return self._add("table", columns=columns, rows=rows, numeric=numeric, caption=caption)

    def figure(self, png: bytes, caption: str = "") -> Self:
        """Add a picture, with a caption that also serves as its text alternative."""
        # Shown at one scale, pictures of different widths have lettering of one size.
        width = round(int.from_bytes(png[16:20], "big") * _PIXELS_PER_INCH / DPI)
        return self._add("figure", base64=base64.b64encode(png).decode("ascii"), width=width, caption=caption)

    def html(self) -> str:
        """Render the whole page."""
        page = _TEMPLATES.get_template("page.html.j2")
        return page.render(title=self._title, subtitle=self._subtitle, parts=self._parts)

    def _add(self, kind: str, **content: object) -> Self:
        self._parts.append({"kind": kind, **content})
        return self


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float | np.number) and not isinstance(value, bool))


def _shown(value: object) -> str:
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return "n/a"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:.3f}"
    return str(value)


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("ray_fer.reports"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters["shown"] = _shown
