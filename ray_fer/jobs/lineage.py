"""Where a model comes from, back to the labelled faces: read from what every artifact says of itself.

A node of the tree is one thing that took part: ``kind`` (model, temporal model, data, pseudo-labels, predictions,
feedback), ``role`` in what it helped to make, ``uri``, what is known of it, and ``parents``. What is no longer there,
or is another thing by now, keeps its place in the tree with a ``problem``: the artifact that it made still says what it
was. Nothing is computed anew but the counts of a predictions table by source.
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
from ray_fer.models.records import EncoderMetrics, Provenance, Scored, Trained
from ray_fer.models.teacher import open_teacher
from ray_fer.selection import file as selection_file
from ray_fer.training.run_folder import digest
from ray_fer.video.encoder import CONFIG as TEMPORAL_CONFIG
from ray_fer.video.encoder import open_temporal

log = logging.getLogger(__name__)

Node = dict[str, Any]


def lineage(config: LineageConfig) -> dict[str, Any]:
    """Prints the tree on stderr.

    Returns:
        ``model``, ``lineage`` (its node) and ``missing`` (every problem in the tree).

    Raises:
        UserError: when ``model`` holds neither a model nor a selection.
    """
    uri = storage.normalise(config.model)
    tree = _Tree().root(uri)
    print("\n".join(_lines(tree)), file=sys.stderr)
    missing = [f"{node['role']} {node['uri']}: {node['problem']}" for node in _walk(tree) if "problem" in node]
    for each in missing:
        log.warning("%s", each)
    return {"model": uri, "lineage": tree, "missing": missing}


class _Tree:
    """Nodes by what they are made from; a model that occurs again is only named."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def root(self, uri: str) -> Node:
        if storage.exists(storage.join(uri, selection_file.INFO)):
            info = read_document(storage.join(uri, selection_file.INFO), selection_file.Origin)
            return self._selection("this selection", uri, dict(info), digest(info))
        if storage.exists(storage.join(uri, TEMPORAL_CONFIG)):
            return self._temporal("this model", uri)
        return self._model("this model", uri, None)

    def _model(self, role: str, uri: str, expected: str | None) -> Node:
        """A backbone, or whatever else was a teacher.

        Args:
            role: in what it helped to make.
            uri: where it was.
            expected: its id then; None takes what is there, or raises.
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
        feedback = provenance["feedback"]
        if feedback["uri"]:
            versions = {key: feedback.get(key) for key in ("version_at_start", "version_of_best")}
            parents.append(_feedback(feedback["uri"], tuple(provenance["config"]["classes"]), versions))
        if arguments["init"]:
            parents.append(self._model("init", arguments["init"], provenance["parents"]["init"]))
        if arguments["pseudo"]:
            selection = provenance["parents"]["selection"]
            parents.append(self._selection("pseudo", arguments["pseudo"], selection, contents["pseudo"]))
        return parents

    def _temporal(self, role: str, uri: str) -> Node:
        model = open_temporal(uri)
        provenance = _provenance(uri)
        if provenance is None:
            raise UserError(f"model={uri}: no {PROVENANCE} there that says how it was trained")
        identity, counts = provenance["identity"], provenance["counts"]
        parents = [
            _data(key, identity["arguments"][key], counts[key]["labelled"], identity["contents"][key])
            for key in ("features", "val")
        ]
        backbone = provenance["parents"]
        # Without a place for it, as older models are, the copy inside the model is what is left.
        parents.append(
            self._model("backbone", backbone.get("backbone_uri") or model.backbone.uri, backbone["backbone"])
        )
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
    scores = {"val": val["macro_f1"]}
    scores |= {half: val[half]["macro_f1"] for half in ("choice", "feedback") if half in val}
    return {
        "macro_f1": scores,
        "config": provenance["config"],
        "git_commit": provenance["git_commit"],
        "packages": provenance["packages"],
    }


def _data(role: str, uri: str, count: int | None, content: str | None) -> Node:
    node = _node("data", role, uri, count=count, digest=content)
    if not (storage.exists(uri) or storage.is_dir(uri)):
        node["problem"] = "gone (nothing is there)"
    return node


def _unlabeled(model: str, sources: list[Any], count: int, recorded: Node) -> Node:
    """The unlabeled faces of a run: where they were listed, and the listing, which lies beside the model."""
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
    """The state at the newest of ``versions``, and how many updates of which run had made it."""
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
    """Of a model that a job of ours trained; None for another."""
    place = storage.join(uri, PROVENANCE)
    if not storage.exists(place) or "identity" not in (found := read_document(place, Provenance)):
        return None
    return dict(check_document(found, place, Trained))


# --- for people ---


def _lines(node: Node, first: str = "", rest: str = "") -> Iterator[str]:
    yield f"{first}{node['role']}: {node['uri']}{_facts(node)}"
    parents = node.get("parents", [])
    for number, parent in enumerate(parents, 1):
        last = number == len(parents)
        yield from _lines(parent, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


def _facts(node: Node) -> str:
    said = []
    if "id" in node:
        said.append(f"id {node['id']}")
    if node.get("count") is not None:
        said.append(f"{node['count']} faces")
    if node.get("digest"):
        said.append(f"sha256 {node['digest'][:12]}")
    if "macro_f1" in node:
        said.append("macro-F1 " + ", ".join(f"{name} {100 * f1:.2f}" for name, f1 in node["macro_f1"].items() if f1))
    if "accepted" in node:
        said.append(f"{node['accepted']} of {node['considered']} by {(node['rule'] or {}).get('rule')}")
    versions = ("version", "version_at_start", "version_of_best", "feedback_version")
    said += [f"{key.replace('_', ' ')} {node[key]}" for key in versions if node.get(key) is not None]
    for key, what in (("sources", "predictions of"), ("updates", "updates by")):
        said += [f"{count} {what} {name}" for name, count in node.get(key, {}).items()]
    if node.get("git_commit"):
        said.append(f"commit {node['git_commit'][:12]}")
    said += [node[key] for key in ("origin",) if key in node]
    if node.get("above"):
        said.append("see above")
    if "problem" in node:
        said.append(f"PROBLEM: {node['problem']}")
    return f"  ({'; '.join(said)})" if said else ""


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for parent in node.get("parents", []):
        yield from _walk(parent)
