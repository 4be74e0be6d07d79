"""The names of the source formats, which are the values of ``format=``, and where each is implemented.

A new format is a module in ``ray_fer/data/sources/`` with a subclass of `ray_fer.data.sources.spec.Format`, and a line
here. The modules are imported when they are first needed, so that a config can be checked without them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, NamedTuple


class Entry(NamedTuple):
    """A format.

    Attributes:
        implementation: its ``module:class``.
        mark: what the URIs of its images have in them, where these lie inside its files: ``!/``, or a text with ``#``
            before it. Its `Format.parse` is asked about such URIs alone.
    """

    implementation: str
    mark: str | None = None


FORMATS = {
    "auto": Entry("ray_fer.data.sources.objects:Objects"),
    "images": Entry("ray_fer.data.sources.objects:Images"),
    "webdataset": Entry("ray_fer.data.sources.tar:WebDataset", "!/"),
    "parquet": Entry("ray_fer.data.sources.parquet:Parquet", "&row="),
    "lance": Entry("ray_fer.data.sources.lance:Lance", "&rowid="),
    "list": Entry("ray_fer.data.sources.lists:UriList"),
    "inventory": Entry("ray_fer.data.sources.inventory:Inventory"),
    "s3_metadata": Entry("ray_fer.data.sources.s3_metadata:S3Metadata"),
    "events": Entry("ray_fer.data.sources.events:Events"),
}
"""The formats by their names; ``auto`` also stands for loose images with tar shards among them."""


@functools.cache
def load_format(name: str) -> Any:
    """The one instance of the `Format` of this name."""
    module, _, kind = FORMATS[name].implementation.partition(":")
    return getattr(import_module(module), kind)()


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an image: a loose object, or in a subclass an image inside ``file``.

    Attributes:
        file: URI of the file that is the image, or holds it.
    """

    format: ClassVar[str] = "auto"
    """The name of the format that looks up and reads the image."""
    exact_size: ClassVar[bool] = True
    """Whether a listing gives the image's own size, rather than a mean."""

    file: str

    @property
    def uri(self) -> str:
        """The image's URI."""
        return self.file


def parse(uri: str) -> Place | None:
    """The place of the picture ``uri`` (see `uris.split_face`) inside a file, or None for a loose object."""
    if "!/" in uri or "#" in uri:
        for name, (_, mark) in FORMATS.items():
            place: Place | None = load_format(name).parse(uri) if mark and mark in uri else None
            if place is not None:
                return place
    return None
