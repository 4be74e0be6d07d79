"""Unlabeled sources: where the images of a run lie, listed as a stream of pages.

`listing` decides by a source's format who lists it: `objects` (folders, prefixes, `globs`), `tar` (WebDataset shards),
`parquet` and `lance` (image columns; `tables` knows which files are a table's now), `lists` (of URIs), `feeds`
(inventories, event records) or `s3_metadata`. The pages look the same for all: `pages` says what they hold, `uris` how
an image inside another file is named.
"""

from ray_fer.data.sources.listing import check_sources, list_sources
from ray_fer.data.sources.objects import local_identity
from ray_fer.data.sources.pages import PAGE_SCHEMA

__all__ = ["PAGE_SCHEMA", "check_sources", "list_sources", "local_identity"]
