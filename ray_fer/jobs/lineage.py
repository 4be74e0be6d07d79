"""The job that traces a model back to the labelled faces, from what every artifact records about itself.

A node of the tree is one input: its ``kind`` (model, temporal model, data, pseudo-labels, predictions, feedback), its
``role`` in what was made from it, its ``uri``, what is known of it, and its ``parents``. An input that is no longer
there, or that has changed, keeps its place in the tree with a ``problem``. Nothing is computed anew but the counts of a
predictions table by source.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import polars as pl
from deltalake.exceptions import DeltaError

from ray_fer import storage
from ray_fer.documents import MissingDocumentError, check_document, read_document
from ray_fer.errors import UserError, one_line
from ray_fer.feedback.history import read_history
from ray_fer.jobs.config import LineageConfig
from ray_fer.jobs.held_out import UNLABELED
from ray_fer.labeling.table import OK, open_table
from ray_fer.models.artifact import METRICS, PROVENANCE
from ray_fer.models.pretrained import is_on_hub
from ray_fer.models.records import EncoderMetrics, Provenance, Scored, Trained
from ray_fer.models.teacher import open_teacher
from ray_fer.reports.lineage import Node, lineage_lines
from ray_fer.selection import file as selection_file
from ray_fer.training.run_folder import digest
from ray_fer.video.artifact import is_temporal, open_temporal

log = logging.getLogger(__name__)


def lineage(config: LineageConfig) -> dict[str, Any]:
    """Print the tree on stderr.

    Returns:
        ``model``, ``lineage`` (its node) and ``missing`` (every problem in the tree).

    Raises:
        UserError: When ``model`` holds neither a model nor a selection.
    """
    uri = storage.normalise(config.model)
    tree = _Tree().root(uri)
    print("\n".join(lineage_lines(tree)), file=sys.stderr)
    missing = [f"{node['role']} {node['uri']}: {node['problem']}" for node in _walk(tree) if "problem" in node]
    for each in missing:
        log.warning("%s", each)
    return {"model": uri, "lineage": tree, "missing": missing}


class _Tree:
    """Makes the nodes; a model that occurs again has no parents the second time."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def root(self, uri: str) -> Node:
        if storage.exists(storage.join(uri, selection_file.INFO)):
            info = read_document(storage.join(uri, selection_file.INFO), selection_file.Origin)
            return self._selection("this selection", uri, dict(info), digest(info))
        if is_temporal(uri):
            return self._temporal("this model", uri)
        return self._model("this model", uri, None)

    def _model(self, role: str, uri: str, expected: str | None) -> Node:
        """Make the node of a backbone or of any other teacher.

        Args:
            role: Its role in what was made from it.
            uri: Where it was.
            expected: Its id at that time; None accepts any, and raises `UserError` when there is no model.
        """
        try:
            model = open_teacher(uri)
        except UserError as error:
            if expected is None:
                raise
            return _node("model", role, uri, id=expected, problem=f"gone ({error})")
        node = _node("model", role, model.uri, id=model.id)
        if expected is not None and model.id != expected:
            return node | {"id": expected, "problem": f"another model is there now, {model.id}"}
        if (model.uri, model.id) in self._seen:
            return node | {"above": True}
        self._seen.add((model.uri, model.id))
        provenance = _provenance(model.uri)
        if provenance is None:
            return node | {"origin": "not trained by ray-fer"}
        metrics = dict(read_document(storage.join(model.uri, METRICS), Scored))
        return node | _made(provenance, metrics) | {"parents": self._parents_of(model.uri, provenance)}

    def _parents_of(self, uri: str, provenance: Node) -> list[Node]:
        arguments, contents = provenance["identity"]["arguments"], provenance["identity"]["contents"]
        counts = dict(provenance["counts"])
        if arguments.get("feedback_val"):
            counts["val"] -= counts["feedback_val"]
        data = [key for key in ("labeled", "val", "feedback_val", "pretrained") if arguments.get(key)]
        parents = [_data(key, arguments[key], counts.get(key), contents.get(key)) for key in data]
        if arguments.get("unlabeled"):
            parents.append(_unlabeled(uri, arguments["unlabeled"], counts["unlabeled"], provenance["parents"]))
        feedback = provenance.get("feedback") or {}
        if feedback.get("uri"):
            versions = {key: feedback.get(key) for key in ("version_at_start", "version_of_best")}
            parents.append(_feedback(feedback["uri"], tuple(provenance["config"]["classes"]), versions))
        if arguments.get("init"):
            parents.append(self._model("init", arguments["init"], provenance["parents"]["init"]))
        for role in ("teacher", "also"):
            models = provenance["parents"].get(role, ())
            parents += [self._model(role, model["uri"], model["id"]) for model in models]
        if table := provenance["parents"].get("table"):
            parents.append(_predictions(table["uri"], table["version"], table["models"]))
        if arguments.get("pseudo"):
            selection = provenance["parents"]["selection"]
            parents.append(self._selection("pseudo", arguments["pseudo"], selection, contents["pseudo"]))
        return parents

    def _temporal(self, role: str, uri: str) -> Node:
        model = open_temporal(uri)
        provenance = _provenance(uri)
        if provenance is None:
            raise UserError(f"model={uri}: no {PROVENANCE} there that says how it was trained")
        identity, counts, backbone = provenance["identity"], provenance["counts"], provenance["parents"]
        # Older models do not record where the backbone was, but hold a copy of it.
        place = backbone.get("backbone_uri") or model.backbone.uri
        parents = [
            _data(key, identity["arguments"][key], counts[key]["labelled"], identity["contents"][key])
            for key in ("features", "val")
        ] + [self._model("backbone", place, backbone["backbone"])]
        scores = read_document(storage.join(uri, METRICS), EncoderMetrics)["val"]["scores"]
        metrics = {"val": {"macro_f1": scores["encoder_smoothed"]}}
        return _node("temporal model", role, uri, id=model.id, **_made(provenance, metrics), parents=parents)

    def _selection(self, role: str, uri: str, info: Node, expected: str) -> Node:
        keys = ("accepted", "considered", "counts", "rule", "thresholds", "feedback_version")
        node = _node("pseudo-labels", role, uri, digest=expected, **{key: info.get(key) for key in keys})
        try:
            if digest(read_document(storage.join(uri, selection_file.INFO), selection_file.Info)) != expected:
                node["problem"] = "another selection is there now"
        except MissingDocumentError:
            node["problem"] = f"gone (no {selection_file.INFO} there)"
        except UserError as error:
            node["problem"] = f"damaged ({error})"
        ids = info.get("teachers") or [info["teacher"]]
        models = info.get("models") or [info.get("model")]
        parents = [_predictions(info["table"], info["version"], models)]
        if info.get("feedback"):
            versions = {"version": info["feedback_version"]}
            parents.append(_feedback(info["feedback"], tuple(info["classes"]), versions))
        uris = info.get("teacher_uris") or [None] * len(ids)
        for number, (teacher, place) in enumerate(zip(ids, uris, strict=True), 1):
            name = "teacher" if len(ids) == 1 else f"teacher {number}"
            if place is None:
                parents.append(_node("model", name, "?", id=teacher, problem="where it was is not recorded"))
            else:
                parents.append(self._model(name, place, teacher))
        return node | {"parents": parents}


def _node(kind: str, role: str, uri: str, **facts: Any) -> Node:
    return {"kind": kind, "role": role, "uri": uri, **facts}


def _made(provenance: Node, metrics: Node) -> Node:
    val = metrics["val"]
    halves = {half: val[half]["macro_f1"] for half in ("choice", "feedback") if half in val}
    facts = {key: provenance[key] for key in ("config", "git_commit", "packages")}
    return {"macro_f1": {"val": val["macro_f1"], **halves}, **facts}


def _data(role: str, uri: str, count: int | None, content: str | None) -> Node:
    node = _node("data", role, uri, count=count, digest=content)
    if not (is_on_hub(uri) or storage.exists(uri) or storage.is_dir(uri)):
        node["problem"] = "gone (nothing is there)"
    return node


def _unlabeled(model: str, sources: list[Any], count: int, recorded: Node) -> Node:
    """Make the node of the unlabeled faces of a run, whose listing lies beside the model."""
    places = ", ".join(source if isinstance(source, str) else source["uri"] for source in sources)
    listing = storage.join(model, UNLABELED)
    node = _node("data", "unlabeled", places, count=count, digest=recorded.get("unlabeled"), listing=listing)
    if not storage.exists(listing):
        node["problem"] = f"its faces are not recorded (no {UNLABELED} beside the model)"
    return node


def _predictions(uri: str, version: int, models: list[str | None]) -> Node:
    node = _node("predictions", "table", uri, version=version, models=models)
    try:
        table = open_table(uri)
        if table is None:
            return node | {"problem": "gone (no table there)"}
        table.load_as_version(version)
        counts: Counter[str] = Counter()
        for model in models:
            dataset = table.to_pyarrow_dataset(file_pruning_predicate=[("model", "=", model)])
            rows = dataset.to_table(columns=["source", "status"])
            ok = pl.DataFrame(pl.from_arrow(rows)).filter(pl.col("status") == OK)
            counts.update(dict(ok["source"].value_counts().iter_rows()))
    except (UserError, OSError, DeltaError) as error:
        return node | {"problem": f"gone ({one_line(error)})"}
    return node | {"sources": dict(sorted(counts.items()))}


def _feedback(uri: str, classes: tuple[str, ...], versions: dict[str, int | None]) -> Node:
    """Make the node of the feedback state at the newest of ``versions``, with its number of updates by run."""
    node = _node("feedback", "feedback", uri, **versions)
    newest = max(version or 0 for version in versions.values())
    try:
        documents = [each for each in read_history(uri, classes) if each["version"] <= newest]
    except UserError as error:
        return node | {"problem": f"damaged ({error})"}
    if len(documents) < newest:
        return node | {"problem": f"gone (version {newest} is not there)"}
    return node | {"updates": dict(Counter(each["source"].partition("/")[0] for each in documents))}


def _provenance(uri: str) -> Node | None:
    """Read the provenance of a model that ray-fer trained; None for another model."""
    place = storage.join(uri, PROVENANCE)
    if not storage.exists(place) or "identity" not in (found := read_document(place, Provenance)):
        return None
    return dict(check_document(found, place, Trained))


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for parent in node.get("parents", []):
        yield from _walk(parent)
