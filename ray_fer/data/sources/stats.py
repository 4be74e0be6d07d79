"""Identity and size of single images, wherever they are, with many requests in flight."""

from __future__ import annotations

from collections.abc import Sequence

from ray_fer.data.formats import load_format
from ray_fer.data.items import Stat
from ray_fer.data.sources.uris import Place, parse, split_face


def stat_objects(uris: Sequence[str]) -> list[Stat]:
    """Identity and size of each image, of members and rows too; an empty identity for what cannot be found.

    A face has those of its picture.

    Raises:
        botocore.exceptions.BotoCoreError: when the store cannot be asked at all.
    """
    pictures = [split_face(uri)[0] for uri in uris]
    by_format: dict[str, dict[str, Place]] = {}
    for picture in pictures:
        place = parse(picture) or Place(picture)
        by_format.setdefault(place.format, {})[picture] = place
    found: dict[str, Stat] = {}
    for name, places in by_format.items():
        found |= zip(places, load_format(name).stat(list(places.values())), strict=True)
    return [found[picture] for picture in pictures]
