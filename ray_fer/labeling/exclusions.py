"""Pictures that must not become pseudo-labels, by their names and by what they hold."""

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
    """Pictures to leave out.

    Attributes:
        uris: of the pictures and of the faces that are named; all faces in the pictures are meant.
        digests: of their bytes, by which copies under other names are found.
    """

    uris: frozenset[str] = frozenset()
    digests: frozenset[bytes] = frozenset()


def name_exclusions(manifests: Sequence[str]) -> dict[str, list[str]]:
    """URIs of the pictures that each manifest or folder names; none is read.

    Raises:
        UserError: for one that cannot be read, or names what can be no picture.
    """
    try:
        return {manifest: named_pictures(manifest) for manifest in manifests}
    except UserError as error:
        raise UserError(f"selection.exclude={error}") from None


def read_exclusions(config: SelectionConfig) -> Exclusions:
    """The pictures that ``config.exclude`` names, each of which is read.

    Raises:
        UserError: as `name_exclusions`; and for the first manifest with a picture that cannot be read, unless
            ``config.exclude_unreadable`` is ``skip``.
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
