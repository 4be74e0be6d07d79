"""Unlabeled sources: where the images of a run lie, listed as a stream of pages.

Each format is a module that lists its images, parses their URIs, looks them up and reads them: `objects` (loose files),
`tar` (WebDataset shards), `parquet` and `lance` (image columns). The modules `lists` (of URIs), `inventory`,
`s3_metadata` and `events` list images that lie elsewhere. `spec.Format` says what a format has to offer,
`ray_fer.data.formats` has their names, and `listing` goes over all sources of a run. The pages look the same for all:
`pages` says what they hold, and `ray_fer.data.uris` how an image inside another file is named.
"""

from ray_fer.data.sources.files import local_identity
from ray_fer.data.sources.listing import check_sources, list_sources
from ray_fer.data.sources.pages import PAGE_SCHEMA

__all__ = ["PAGE_SCHEMA", "check_sources", "list_sources", "local_identity"]
