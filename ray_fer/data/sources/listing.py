"""Lists all sources as one stream of pages."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources.file_sets import log_once
from ray_fer.data.sources.spec import Source, resolve
from ray_fer.errors import UserError

log = logging.getLogger(__name__)


def list_sources(sources: Sequence[str | SourceConfig], counts: Counter[str]) -> Iterator[pa.Table]:
    """Yields pages of the images of all sources, one source after the other.

    Args:
        sources: URIs of folders, prefixes, patterns, single files, or entries with a format and other options.
        counts: grows while the pages are drawn. ``listed`` counts images. ``skipped`` counts objects that are none:
            without an image's extension, compressed archives, empty lines and old versions in lists, and what cannot be
            listed. ``unlisted`` counts places that cannot be listed to their end, so that images may be missing.

    Yields:
        Tables of `PAGE_SCHEMA`, none empty.

    Raises:
        UserError: for a source that is not there, cannot be read or holds no image.
    """
    empty: list[Source] = []
    for source in _outermost([resolve(source) for source in sources]):
        before = Counter(counts)
        absent, example = 0, ""
        chosen = source.chooser()
        for keys in source.kind.list_images(source, counts):
            page = keys.filter(pa.array(map(chosen, keys["uri"].to_pylist()), pa.bool_())) if chosen else keys
            if page.num_rows:
                counts["listed"] += page.num_rows
                missing = page["uri"].filter(pc.equal(page["identity"], ""))
                absent, example = absent + len(missing), example or next(iter(missing), pa.scalar("")).as_py()
                yield page.append_column("source", pa.repeat(source.label, page.num_rows))
        found, skipped = (counts[name] - before[name] for name in ("listed", "skipped"))
        if found and absent == found:
            log_once(
                logging.WARNING,
                f"source={source.uri}: none of the {found} objects that it names is there, like {example}",
            )
        elif not found and not source.kind.may_be_empty:
            empty.append(source)
        elif not found:  # where it holds nothing at all, nothing has come since the last run
            level = logging.WARNING if skipped else logging.INFO
            log_once(level, f"source={source.uri}: no image comes from it, {skipped} records or objects are skipped")
    if empty:
        hint = "; a pattern names objects, not folders: …/**" if empty[0].glob else ""
        raise UserError(f"source={empty[0].uri}: no image there{hint}")


def check_sources(sources: Sequence[str | SourceConfig]) -> None:
    """Raises `UserError` for the first source that is not there, holds no image, or names what can be no image.

    At most a page of each is listed, and a single list or file of events read to its end.
    """
    for source in sources:
        next(iter(list_sources([source], Counter())), None)
        resolved = resolve(source)
        resolved.kind.check_content(resolved)


def _outermost(sources: Sequence[Source]) -> list[Source]:
    """``sources`` without repetitions and without those that lie inside another one."""
    kept: list[Source] = []
    for source in sorted(dict.fromkeys(sources), key=lambda source: source.uri):
        inside = next((outer for outer in kept if outer.plain and source.uri.startswith(outer.uri + "/")), None)
        if inside and source.plain and not inside.hides(f"{source.uri}/"):
            log.warning("source %s lies inside %s and is listed once", source.uri, inside.uri)
        else:
            kept.append(source)
    return kept
