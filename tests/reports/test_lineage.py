from __future__ import annotations

from ray_fer.reports.lineage import lineage_lines


def test_the_tree_and_what_is_known_of_each_node() -> None:
    table = {"role": "table", "uri": "/t", "version": 3, "sources": {"s3://a": 10}}
    pseudo = {"role": "pseudo", "uri": "/p", "accepted": 4, "considered": 10, "rule": {"rule": "ranks"}}
    parents = [
        {"role": "labeled", "uri": "/l.csv", "count": 7, "digest": "0123456789abcdef"},
        pseudo | {"parents": [table, {"role": "teacher", "uri": "/m", "id": "1", "above": True}]},
        {"role": "feedback", "uri": "/f", "version_at_start": 0, "updates": {"run": 2}, "problem": "gone"},
    ]
    scores = {"val": 0.5, "choice": 0.25, "feedback": None}
    model = {"role": "this model", "uri": "/m", "id": "1", "macro_f1": scores, "git_commit": "f" * 40}
    assert list(lineage_lines(model | {"parents": parents})) == [
        "this model: /m  (id 1; macro-F1 val 50.00, choice 25.00; commit ffffffffffff)",
        "├─ labeled: /l.csv  (7 faces; sha256 0123456789ab)",
        "├─ pseudo: /p  (4 of 10 by ranks)",
        "│  ├─ table: /t  (version 3; 10 predictions of s3://a)",
        "│  └─ teacher: /m  (id 1; see above)",
        "└─ feedback: /f  (version at start 0; 2 updates by run; PROBLEM: gone)",
    ]
