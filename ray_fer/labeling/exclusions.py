"""Pictures that must not become pseudo-labels, by their URIs and by their contents."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ray_fer.data.digests import contents_of, describe_unread
from ray_fer.data.manifests import named_pictures
from ray_fer.data.uris import split_face
from ray_fer.errors import UserError
from ray_fer.selection.config import SelectionConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exclusions:
    """Pictures to leave out of a selection.

    Attributes:
        uris: URIs of the pictures. A manifest may name a face; then both the face and its picture are among them, and
            the picture is excluded with all of its faces.
        digests: Digests of the pictures' bytes, which find copies under other names.
    """

    uris: frozenset[str] = frozenset()
    digests: frozenset[bytes] = frozenset()


def name_exclusions(manifests: Sequence[str]) -> dict[str, list[str]]:
    """Returns the URIs of the pictures that each manifest or folder names, without reading the pictures.

    Raises:
        UserError: If a manifest cannot be read, or names something that cannot be a picture.
    """
    try:
        return {manifest: named_pictures(manifest) for manifest in manifests}
    except UserError as error:
        raise UserError(f"selection.exclude={error}") from None


def read_exclusions(config: SelectionConfig) -> Exclusions:
    """Reads all pictures that ``config.exclude`` names, for their digests.

    Raises:
        UserError: If `name_exclusions` raises it, or if a picture cannot be read and ``config.exclude_unreadable`` is
            ``error``.
    """
    uris, digests = set[str](), set[bytes]()
    for manifest, named in name_exclusions(config.exclude).items():
        pictures = dict.fromkeys(split_face(uri)[0] for uri in named)
        contents = contents_of(pictures, checked=True)
        uris.update(named, pictures)
        digests.update(contents.digests)
        if contents.unread:
            message = f"selection.exclude={manifest}: {describe_unread(contents.unread, len(pictures))}"
            if config.exclude_unreadable == "error":
                raise UserError(
                    f"{message}, and no copy of them would be found; selection.exclude_unreadable=skip goes on without"
                )
            log.warning("%s; copies of them are not excluded", message)
    return Exclusions(frozenset(uris), frozenset(digests))
