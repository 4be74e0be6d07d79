"""The versions of the feedback state on storage: one JSON file for each, checked when it is read.

The state of version n is made from that of version n - 1, so a history has every version from the first on. Nothing is
skipped: without a damaged version the state would come back as an older one, or with thresholds that no prediction
reaches. Files whose names are not those of versions are ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from ray_fer import storage
from ray_fer.documents import read_document
from ray_fer.errors import UserError, as_user_error
from ray_fer.feedback.config import FeedbackPart
from ray_fer.feedback.factors import DEBIAS_STRENGTH, MAX_BOOST, MAX_CUT, MAX_THRESHOLD, MIN_THRESHOLD

Document = dict[str, Any]

_NAME = re.compile(r"v(\d{6,})\.json")

NonNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# The bounds of the targets, which no state leaves.
Threshold = Annotated[float, Field(ge=MIN_THRESHOLD, le=MAX_THRESHOLD, allow_inf_nan=False)]
LogWeight = Annotated[float, Field(ge=-math.log(MAX_CUT), le=math.log(MAX_BOOST), allow_inf_nan=False)]
LogDebias = Annotated[float, Field(ge=-DEBIAS_STRENGTH, le=DEBIAS_STRENGTH, allow_inf_nan=False)]


@with_config(ConfigDict(extra="forbid"))
class StoredState(TypedDict):
    """`FeedbackState` as JSON."""

    log_weights: list[LogWeight]
    thresholds: list[Threshold]
    log_debias: list[LogDebias]
    tau0: Threshold
    loss_share: Share
    sampling_share: Share
    version: NonNegativeInt
    low_share_rounds: NonNegativeInt
    worse_rounds: NonNegativeInt
    best_macro_f1: Share | None
    best_version: NonNegativeInt


class Version(TypedDict):
    """The keys that are read of a version's file; the file also holds the arguments of the update."""

    version: NonNegativeInt
    source: str
    classes: list[str]
    parts: NotRequired[list[FeedbackPart]]
    state: StoredState


def file_name(version: int) -> str:
    """Returns the name of the file of a version."""
    return f"v{version:06d}.json"


def read_history(uri: str, classes: Sequence[str]) -> list[Document]:
    """Reads every version under ``uri`` as it is stored, oldest first.

    Raises:
        UserError: They are of other classes, or one is damaged or missing. The message names the file and the last good
            version before it.
    """
    found = _versions(uri)
    documents: list[Document] = []
    for number in found:
        try:
            documents.append(_read(uri, number, documents))
        except UserError as error:
            name, good = file_name(number), len(documents)
            first = f"{name} and the later ones" if number != found[-1] else name
            rescue = f"go on from version {good}, the last good one" if good else "begin anew: no version is good"
            raise UserError(f"feedback={uri}: {error}; remove {first} to {rescue}") from None
        if documents[0]["classes"] != list(classes):
            theirs, ours = ", ".join(documents[0]["classes"]), ", ".join(classes)
            raise UserError(f"feedback={uri}: it is about the classes {theirs}, not {ours}")
    return documents


def _versions(uri: str) -> list[int]:
    """Lists the numbers of the files that are there, ascending."""
    with as_user_error(f"feedback={uri}: cannot be listed"):
        names = storage.list_dir(uri)
        if not names and storage.exists(uri) and not storage.is_dir(uri):
            raise UserError(f"feedback={uri}: a file, not the folder of a feedback state")
    numbers = (int(match[1]) for name in names if (match := _NAME.fullmatch(name)) and name == file_name(int(match[1])))
    return sorted(number for number in numbers if number)


def _read(uri: str, number: int, before: Sequence[Document]) -> Document:
    """Reads version ``number``, which follows on those ``before``."""
    name, place = file_name(number), storage.join(uri, file_name(number))
    if number != len(before) + 1:
        raise UserError(f"{file_name(len(before) + 1)} is missing, though {name} is there")
    try:
        document: Document = dict(read_document(place, Version))
    except UserError as error:
        raise UserError(str(error).replace(place, name)) from None
    state, classes = document["state"], document["classes"]
    for key, stated in (("version", document["version"]), ("state.version", state["version"])):
        if stated != number:
            raise UserError(f"{name}: {key} is {stated}, which does not fit the file's name")
    for key in ("log_weights", "thresholds", "log_debias"):
        if len(state[key]) != len(classes):
            raise UserError(f"{name}: state.{key} has {len(state[key])} numbers for {len(classes)} classes")
    if before and classes != before[0]["classes"]:
        raise UserError(f"{name}: its classes {', '.join(classes)} are not those of the versions before")
    return document
