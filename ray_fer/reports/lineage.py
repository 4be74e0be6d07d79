"""The lineage of a model as a tree of text lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Node = dict[str, Any]
"""``kind``, ``role``, ``uri``, what is known of it, and ``parents``; see `ray_fer.jobs.lineage`."""


def lineage_lines(node: Node, first: str = "", rest: str = "") -> Iterator[str]:
    """Yield the lines of the tree below ``node``, its own line after ``first`` and the others after ``rest``."""
    yield f"{first}{node['role']}: {node['uri']}{_facts(node)}"
    parents = node.get("parents", [])
    for number, parent in enumerate(parents, 1):
        last = number == len(parents)
        yield from lineage_lines(parent, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


def _facts(node: Node) -> str:
    facts = []
    if "id" in node:
        facts.append(f"id {node['id']}")
    if node.get("count") is not None:
        facts.append(f"{node['count']} faces")
    if node.get("digest"):
        facts.append(f"sha256 {node['digest'][:12]}")
    if "macro_f1" in node:
        facts.append("macro-F1 " + ", ".join(f"{name} {100 * f1:.2f}" for name, f1 in node["macro_f1"].items() if f1))
    if "accepted" in node:
        facts.append(f"{node['accepted']} of {node['considered']} by {(node['rule'] or {}).get('rule')}")
    versions = ("version", "version_at_start", "version_of_best", "feedback_version")
    facts += [f"{key.replace('_', ' ')} {node[key]}" for key in versions if node.get(key) is not None]
    for key, what in (("sources", "predictions of"), ("updates", "updates by")):
        facts += [f"{count} {what} {name}" for name, count in node.get(key, {}).items()]
    if node.get("git_commit"):
        facts.append(f"commit {node['git_commit'][:12]}")
    if "origin" in node:
        facts.append(node["origin"])
    if node.get("above"):
        facts.append("see above")
    if "problem" in node:
        facts.append(f"PROBLEM: {node['problem']}")
    return f"  ({'; '.join(facts)})" if facts else ""
