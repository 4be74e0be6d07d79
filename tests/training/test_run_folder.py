import json
from pathlib import Path
from typing import Any

import pytest

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.training.lease import FOLDER, Lease, LeaseLostError
from ray_fer.training.run_folder import RUN, absolute, claim, complete, digest, identity_of, is_finished, must_run

CONTENTS = {"features": "1", "val": "2"}


def identity(*arguments: str, contents: dict[str, str] | None = None) -> dict[str, object]:
    config = load_config("train_temporal", ["features=f", "val=v", "out=o", *arguments])
    # As it is read back.
    return dict(json.loads(json.dumps(identity_of(config, contents or CONTENTS))))


def test_places_and_resources_are_no_part_of_it() -> None:
    assert identity() == identity("out=elsewhere", "workers=3", "zero_stage=2", "max_failures=0")
    assert identity() != identity("seed=1")


def test_workers_get_absolute_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["labeled=a/b.csv", "val=s3://bucket/val/", "out=o", "pseudo=~/p"]
    config = absolute(load_config("train_backbone", given), "labeled", "val", "init", "pseudo")
    assert (config.labeled, config.val, config.init) == (f"{tmp_path}/a/b.csv", "s3://bucket/val", None)
    assert config.pseudo == str(Path.home() / "p")
    with pytest.raises(UserError, match=r"labeled=ftp://x: not a local path and not an s3://bucket/key URI"):
        absolute(load_config("train_backbone", ["labeled=ftp://x", "val=v", "out=o"]), "val", "labeled")


def test_a_run_is_begun_once(tmp_path: Path) -> None:
    calls = []

    def start() -> dict[str, object]:
        calls.append(1)
        return {"run_name": "a"}

    assert claim(str(tmp_path), identity(), start) == {"run_name": "a"}
    assert claim(str(tmp_path), identity(), start) == {"run_name": "a"}
    assert len(calls) == 1
    with pytest.raises(UserError, match=r"holds an unfinished run with seed=0, window=32; choose another out"):
        claim(str(tmp_path), identity("seed=1", "window=16"))
    with pytest.raises(UserError, match="an unfinished run with another content of val"):
        claim(str(tmp_path), identity(contents={"features": "1", "val": "3"}))


@pytest.mark.parametrize("model", ["config.json", "temporal.json"])
def test_a_finished_model(model: str, tmp_path: Path) -> None:
    assert not is_finished(str(tmp_path), identity())
    (tmp_path / model).write_text("{}")
    with pytest.raises(UserError, match="a model that this job did not train"):
        is_finished(str(tmp_path), identity())
    (tmp_path / "provenance.json").write_text(json.dumps({"identity": identity()}))
    assert is_finished(str(tmp_path), identity())
    with pytest.raises(UserError, match="holds a model trained with stride=8"):
        is_finished(str(tmp_path), identity("stride=4"))


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_a_run_is_published_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    done = []

    def run(start: dict[str, Any], lease: Lease) -> int:
        lease.check()
        done.append(("run", start["name"]))
        return 7

    def publish(start: dict[str, Any], outcome: int) -> None:
        assert (tmp_path / RUN).exists()
        done.append(("publish", outcome))
        (tmp_path / "provenance.json").write_text(json.dumps({"identity": identity()}))
        (tmp_path / "config.json").write_text("{}")

    for _ in range(2):  # the second finds the model that the first has made while it waited
        complete(str(tmp_path), identity(), run, publish, lambda: {"name": "a"})
        assert done == [("run", "a"), ("publish", 7)]
        assert not (tmp_path / RUN).exists()
        assert not must_run(str(tmp_path), identity())
        assert not (tmp_path / FOLDER).exists()


def test_who_has_lost_the_folder_publishes_nothing(tmp_path: Path) -> None:
    def run(_start: dict[str, Any], lease: Lease) -> None:
        (tmp_path / FOLDER / f"{lease.number + 1:08d}.json").write_text("{}")

    def publish(_start: dict[str, Any], _outcome: None) -> None:
        raise AssertionError

    with pytest.raises(LeaseLostError):
        complete(str(tmp_path), identity(), run, publish)
    assert must_run(str(tmp_path), identity())
    assert (tmp_path / RUN).exists()
