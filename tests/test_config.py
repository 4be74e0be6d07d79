from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ray_fer.config import SCHEMAS, SourceConfig, conf_file, load_config
from ray_fer.errors import UserError

REQUIRED = ["source=in", "teacher=model", "table=out"]


@pytest.mark.parametrize("job", SCHEMAS)
def test_every_key_of_the_schema_is_in_conf_and_the_other_way_round(job: str) -> None:
    assert set(OmegaConf.load(conf_file(job))) == set(SCHEMAS[job].model_fields)


@pytest.mark.parametrize("job", SCHEMAS)
def test_the_required_keys_are_enough(job: str) -> None:
    required = [key for key, value in OmegaConf.to_container(OmegaConf.load(conf_file(job))).items() if value == "???"]
    config = load_config(job, [f"{key}=x" for key in required])
    assert isinstance(config, SCHEMAS[job])


def test_arguments_override_files_override_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("unit_rows: 7\nbatch_size: 8\nselection: {threshold: 0.9}\n")
    config = load_config("pseudo_label", [*REQUIRED, f"config={tmp_path / 'mine.yaml'}", "batch_size=9"])
    assert (config.unit_rows, config.batch_size, config.selection.threshold) == (7, 9, 0.9)


def test_lists_numbers_and_odd_paths() -> None:
    config = load_config("pseudo_label", ["source=[s3://a/b,/c=d]", "teacher=2024", "table=s3://x/y: z#w"])
    assert config.source == ["s3://a/b", "/c=d"]
    assert config.teacher == ["2024"]
    assert config.table == "s3://x/y: z#w"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["source=a"], "teacher: required, say teacher=…; table: required"),
        ([*REQUIRED, "thresold=1"], "thresold: no such key"),
        ([*REQUIRED, "bach_size=1"], "did you mean batch_size"),
        ([*REQUIRED, "selection.thresold=1"], "selection.thresold: no such key, did you mean selection.threshold"),
        ([*REQUIRED, "batch_size=0", "engine=tf"], "batch_size=0: .*; engine='tf': "),
        ([*REQUIRED, "batch_size=many"], "batch_size='many'"),
        ([*REQUIRED, "verbose"], "'verbose' is not of the form key=value"),
        ([*REQUIRED, "config=/nowhere.yaml"], "config=/nowhere.yaml: no such file"),
    ],
)
def test_wrong_keys_and_values_are_named_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config("pseudo_label", arguments)
    assert "\n" not in str(caught.value)


def test_sources_are_uris_entries_or_a_file_of_them(tmp_path: Path) -> None:
    file = tmp_path / "sources.yaml"
    file.write_text("- s3://a/faces\n- {uri: s3://b/t.parquet, column: image, exclude: '*.png'}\n")
    for value in (str(file), "[s3://a/faces, {uri: s3://b/t.parquet, column: image, exclude: ['*.png']}]"):
        first, second = load_config("pseudo_label", [f"source={value}", *REQUIRED[1:]]).source
        assert first == "s3://a/faces"
        assert second == SourceConfig(uri="s3://b/t.parquet", column="image", exclude=["*.png"])
    assert load_config("self_train", ["source={uri: a}", *(f"{key}=x" for key in ("labeled", "val", "out"))]).source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {uri: a, fromat: list}", "source.0.fromat: no such key"),
        ("- a\n- {format: list}", "source.1.uri: required"),
        ("- {uri: a, format: tar}", "source.0.format='tar': input should be 'auto'"),
        ("- 7", "source.0=7: "),
        ("a: b", "source={'a': 'b'}: "),
        ("", "source=None: "),
        ("[]", "source='.*/sources.yaml': value should have at least 1 item"),
        ("- {", "source='.*/sources.yaml': value error, cannot be read"),
    ],
)
def test_a_wrong_file_of_sources_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sources.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config("pseudo_label", [f"source={tmp_path / 'sources.yaml'}", *REQUIRED[1:]])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"source='/nowhere.yml': value error, cannot be read \(.*no such file"):
        load_config("pseudo_label", ["source=/nowhere.yml", *REQUIRED[1:]])
