"""The names of the source formats, which are the values of ``format=``, and where each is implemented.

A new format is a module in ``ray_fer/data/sources/`` with a subclass of `ray_fer.data.sources.spec.Format`, and a line
here. The modules are imported when they are first needed, so that a config can be checked without them.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

FORMATS = {
    "auto": "ray_fer.data.sources.objects:Objects",
    "images": "ray_fer.data.sources.objects:Images",
    "webdataset": "ray_fer.data.sources.tar:WebDataset",
    "parquet": "ray_fer.data.sources.parquet:Parquet",
    "lance": "ray_fer.data.sources.lance:Lance",
    "list": "ray_fer.data.sources.lists:UriList",
    "inventory": "ray_fer.data.sources.inventory:Inventory",
    "s3_metadata": "ray_fer.data.sources.s3_metadata:S3Metadata",
    "events": "ray_fer.data.sources.events:Events",
}
"""``module:class`` of each format; ``auto`` also stands for loose images with tar shards among them."""


@functools.cache
def load_format(name: str) -> Any:
    """The one instance of the `Format` of this name."""
    module, _, kind = FORMATS[name].partition(":")
    return getattr(import_module(module), kind)()
