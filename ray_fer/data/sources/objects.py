"""Loose images: files in a folder and objects under a prefix."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from ray_fer.data.formats import Place
from ray_fer.data.read import READING_ERRORS, Item, Read, ReadBatch, Stat, failed
from ray_fer.data.sources.files import local_identity, stat_files
from ray_fer.data.sources.pages import key_tables
from ray_fer.data.sources.s3_requests import get_object
from ray_fer.data.sources.spec import ImageFormat, Source
from ray_fer.data.sources.tar import images_among
from ray_fer.data.sources.walk import list_objects


class Objects(ImageFormat):
    """Loose images and the tar shards among them."""

    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        """Lists the images under ``source`` and in the shards there."""
        return images_among(source, key_tables(list_objects(source, counts)), counts)

    def stat(self, places: Sequence[Place]) -> list[Stat]:
        """Looks at the files themselves."""
        return stat_files([place.file for place in places])

    def batch(self, item: Item, place: Place, before: ReadBatch | None) -> ReadBatch:
        """Every object is read by itself."""
        return _Object(place.file, item)


class Images(Objects):
    """Loose images alone."""

    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        """Lists the images under ``source``, and counts the shards as skipped."""
        return images_among(source, key_tables(list_objects(source, counts)), counts, shards=False)


class _Object(ReadBatch):
    """One loose object."""

    def read(self, max_bytes: int) -> list[Read]:
        (item,) = self.items
        try:
            # Without O_NONBLOCK, opening a pipe that has taken the file's place would never return.
            with open(os.open(self.file, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                identity = local_identity(status)
                if not stat.S_ISREG(status.st_mode):
                    return [Read(item, item.identity, None, "unreadable", "no longer a regular file")]
                if status.st_size > max_bytes:
                    return [Read(item, identity, None, "too_large", f"{status.st_size} bytes")]
                return [Read(item, identity, file.read())]
        except OSError as error:
            return [failed(item, error)]

    async def request(self, fs: Any, max_bytes: int) -> list[Read]:
        (item,) = self.items
        try:
            answer = await get_object(fs, self.file, max_bytes)
        except READING_ERRORS as error:
            return [failed(item, error)]
        identity = answer.identity or item.identity
        if answer.body is None:
            return [Read(item, identity, None, "too_large", f"{answer.length} bytes")]
        return [Read(item, identity, answer.body)]
