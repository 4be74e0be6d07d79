"""What a training may learn from beside its validation set: no copy of a picture that it is validated on."""

from __future__ import annotations

import io
import logging
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.data.digests import Contents, describe_unread
from ray_fer.data.manifests import Manifest
from ray_fer.data.read import Item
from ray_fer.data.sources import list_sources
from ray_fer.data.uris import split_face
from ray_fer.errors import UserError
from ray_fer.jobs.backbone_inputs import Inputs
from ray_fer.jobs.head_inputs import HeadInputs
from ray_fer.labeling.table import open_table, scan_rows
from ray_fer.selection.file import Selection
from ray_fer.training.run_folder import digest

log = logging.getLogger(__name__)

UNLABELED = "unlabeled.parquet"
"""The listing of the unlabeled faces, in the run's folder and then beside the model.

Its columns are ``uri``, ``identity`` and ``domain``, the number of the source.
"""


def check_selection(inputs: Inputs) -> None:
    """Makes sure that no pseudo-label is of a picture of the validation set, by URI or by content.

    Raises:
        UserError: when there is one, for the score would be a leak; or when one cannot be read that may be.
    """
    if inputs.selection is None:
        return
    config, selection, held_out = inputs.config, inputs.selection, pictures_of(inputs.val)
    contents = inputs.held_out()
    copies = {item.uri for item in contents.copies(Item(uri, "", 0) for uri in _suspects(selection, contents))}
    found = [uri for uri in selection.uris if uri in copies or split_face(uri)[0] in held_out]
    if found:
        manifests = ",".join(uri for uri in (config.val, config.feedback_val) if uri)
        raise UserError(
            f"pseudo={config.pseudo}: {len(found)} of {len(selection.uris)} pseudo-labels are of pictures of the "
            f"validation set, the first: {found[0]}; select anew with selection.exclude=[{manifests}]"
        )


def _suspects(selection: Selection, contents: Contents) -> list[str]:
    """Which of the selected may be copies of ``contents``: those that were when they were labelled.

    All of them where the table that would say so is gone.
    """
    models = [model for model in selection.info.get("models") or [selection.info.get("model")] if model]
    try:
        table = open_table(selection.info["table"])
    except UserError:
        table = None
    if table is None or not models:
        return list(selection.uris)
    same = pl.col("digest").is_in(list(contents.digests))
    rows = pl.concat([scan_rows(table, model).filter(same).select("uri") for model in models])
    return sorted({*rows.collect(engine="streaming")["uri"]} & {*selection.uris})


def warn_of_copies(inputs: Inputs | HeadInputs) -> None:
    """Says whether labelled faces are of pictures of the validation set; public sets hold such, so it is no error."""
    for name, manifest, contents in (
        ("labeled", inputs.labeled, inputs.labeled_contents),
        ("val", inputs.val, inputs.val_contents),
    ):
        if contents.unread:
            log.warning("%s: %s; copies of them are not found", name, describe_unread(contents.unread, len(manifest)))
    ours, theirs = inputs.labeled_contents.digests, inputs.val_contents.digests
    found = sorted((ours[each], theirs[each]) for each in ours.keys() & theirs.keys())
    if found:
        log.warning(
            "val: %d of %d pictures of labeled have the bytes of one of val, the first: %s and %s; "
            "the score is too good by that",
            *(len(found), len(ours), *found[0]),
        )


def list_unlabeled(inputs: Inputs, folder: str) -> tuple[int, str]:
    """Writes down what the sources hold now, for a run shall see the same faces however often it is interrupted.

    Args:
        inputs: of the job.
        folder: of the run.

    Returns:
        How many faces there are, those of ``labeled`` and ``val`` left out, and whatever has the bytes of one of them;
        and the SHA-256 of their URIs and identities, in whatever order they were listed.

    Raises:
        UserError: for a source that is not there or holds no face, and when some are local and some are not.
    """
    counts: Counter[str] = Counter()
    assert inputs.config.unlabeled is not None
    held_out, known = inputs.held_out(), pictures_of(inputs.labeled) | pictures_of(inputs.val)
    # Sources may overlap, and lists repeat themselves.
    found: dict[str, tuple[Item, int]] = {}
    for domain, source in enumerate(inputs.config.unlabeled):
        for page in list_sources([source], counts):
            for key in zip(*page.select(["uri", "identity", "size"]).to_pydict().values(), strict=True):
                if split_face(key[0])[0] not in known:
                    found[key[0]] = Item(*key), domain
    items = [item for item, _ in found.values()]
    log.info("unlabeled: %d faces are listed; those of the size of one of labeled or val are compared", len(items))
    copies = {item.uri for item in (inputs.labeled_contents | held_out).copies(items)}
    if copies:
        log.info("unlabeled: %d faces that are copies of faces of labeled or val are left out", len(copies))
    kept = [item for item in items if item.uri not in copies]
    if len({storage.is_remote(item.uri) for item in kept}) != 1:
        raise UserError(
            "unlabeled: has to be all local or all on S3" if kept else "unlabeled: no face beside those with a label"
        )
    sink = pa.BufferOutputStream()
    columns = {name: [getattr(item, name) for item in kept] for name in ("uri", "identity")}
    table = pa.table(columns | {"domain": [found[item.uri][1] for item in kept]})
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(storage.join(folder, UNLABELED), sink.getvalue().to_pybytes())
    return len(kept), digest(sorted((item.uri, item.identity) for item in kept))


def pictures_of(manifest: Manifest) -> set[str]:
    """URIs of the pictures that the rows are, or are faces in."""
    return {split_face(uri)[0] for uri in manifest.uris}


def read_unlabeled(folder: str) -> tuple[list[str], NDArray[np.int64]]:
    """The N URIs that `list_unlabeled` wrote down, and the number of the source of each, (N,)."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(folder, UNLABELED))))
    known = "domain" in table.column_names  # a run that an older version began has none
    domains = table["domain"].to_numpy() if known else np.zeros(table.num_rows, np.int64)
    return table["uri"].to_pylist(), domains
