import json
from pathlib import Path

import pytest

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.training.run_folder import absolute, claim, digest, identity_of, is_finished

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
