from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_fer.config import JOBS, conf_text, load_config, schema_of, section_config
from ray_fer.data.source_config import SourceConfig
from ray_fer.errors import UserError

REQUIRED = ["source=in", "teacher=model", "table=out"]


@pytest.mark.parametrize("job", JOBS)
def test_every_key_of_the_schema_is_in_conf_and_the_other_way_round(job: str) -> None:
    assert set(yaml.safe_load(conf_text(job))) == set(schema_of(job).model_fields)


@pytest.mark.parametrize("job", JOBS)
def test_the_required_keys_are_enough(job: str) -> None:
    required = [key for key, value in yaml.safe_load(conf_text(job)).items() if value == "???"]
    config = load_config(job, [f"{key}=x" for key in required])
    assert isinstance(config, schema_of(job))


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
        ([*REQUIRED, "batch_size=9e9", "commit_seconds=inf"], "batch_size=9000000000.0: .*; commit_seconds=inf: "),
        ([*REQUIRED, "batch_size=0x10", "flip=maybe"], "batch_size='0x10': .*; flip='maybe': "),
        ([*REQUIRED, "selection=null", "table="], "table='': .*; selection='null': "),
        ([*REQUIRED, "selection=crest"], "selection='crest': input should be keys and values, such as selection.KEY=V"),
        ([*REQUIRED, "batch_size=null"], "batch_size=null: input should be a valid integer$"),
        ([*REQUIRED, "table.x=1"], "table={'x': '1'}: "),
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
        ("- [7]", r"source.0=\['7'\]: "),
        ("a: b", "source='.*/sources.yaml': value error, no list of sources"),
        ("", "source='.*/sources.yaml': value error, no list of sources"),
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


@pytest.mark.parametrize(
    "name",
    [
        *("20241128_1530", "1.10", "007", "010", "1_000", "1e5", "0x10", "2024-11-28", "12:30", ".inf", "no", "true"),
        *(
            "null",
            "~",
            "[x]",
            "[a,b",
            "{a}",
            "{a: b}",
            "${y",
            "${oc.env:HOME}",
            "a=b",
            "#x",
            "a: b",
            "'q'",
            '"q',
            "a,b",
        ),
        *(" x ", "é/日本", "*x", "&x", "!x", "%x", "|", "???", "./null", "-"),
    ],
)
def test_a_name_is_taken_to_the_letter(name: str, tmp_path: Path) -> None:
    places = ["labeled=a", "val=b", f"out={name}"]
    assert load_config("train_backbone", places).out == name
    quoted = name.replace("'", "''")
    assert load_config("pseudo_label", [f"teacher=['{quoted}', x]", *REQUIRED[::2]]).teacher == [name, "x"]
    nested = load_config("self_train", [*places, "source=c", f"train.pretrained=./{name}"])
    assert nested.train == {"pretrained": f"./{name}"}


@pytest.mark.parametrize("name", ["20241128", "1.10", "007", "2024-11-28", "12:30", "1e5", "no"])
def test_a_name_in_a_file_is_taken_to_the_letter(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"out: {name}\nval: '{name}'\nclasses: [b, {name}]\ninit: '{name}'\n")
    config = load_config("train_backbone", ["labeled=a", f"config={tmp_path}/mine.yaml"])
    assert (config.out, config.val, config.classes, config.init) == (name, name, ["b", name], name)
    (tmp_path / "sources.yaml").write_text(f"- {name}\n- {{uri: {name}, column: {name}, include: {name}}}\n")
    config = load_config("pseudo_label", [f"source={tmp_path}/sources.yaml", *REQUIRED[1:]])
    assert config.source == [name, SourceConfig(uri=name, column=name, include=[name])]


def test_none_is_null_where_a_field_takes_none(tmp_path: Path) -> None:
    places = ["labeled=a", "val=b", "out=c"]
    (tmp_path / "mine.yaml").write_text("init: ~\nbackbone:\npretrained: null\nfeedback: Null\n")
    config = load_config("train_backbone", [*places, f"config={tmp_path}/mine.yaml", "pseudo=null", "layer_decay=null"])
    assert config.model_dump(include={"init", "backbone", "pretrained", "feedback", "pseudo", "layer_decay"}) == (
        dict.fromkeys(["init", "backbone", "pretrained", "feedback", "pseudo", "layer_decay"])
    )
    assert load_config("train_backbone", [*places, "init=~"]).init == "~"


def test_numbers_are_decimal() -> None:
    given = ["epochs=010", "batch_size=1_000", "learning_rate=1e-3", "ema_decay=.5", "seed=1e3", "warmup_epochs=+7"]
    config = load_config("train_backbone", ["labeled=a", "val=b", "out=c", *given, "checkpoint_activations=yes"])
    assert (config.epochs, config.batch_size, config.learning_rate, config.ema_decay) == (10, 1000, 0.001, 0.5)
    assert (config.seed, config.warmup_epochs, config.checkpoint_activations) == (1000, 7, True)


@pytest.mark.parametrize("wrong", ["ema_decay=1", "label_smoothing=1.0", "backbone="])
def test_what_would_leave_nothing_to_learn_is_refused(wrong: str) -> None:
    key, value = wrong.split("=")
    with pytest.raises(UserError, match=rf"^train_backbone: {key}=.*should "):
        load_config("train_backbone", ["labeled=a", "val=b", "out=c", f"{key}={value}"])


@pytest.mark.parametrize("job", [job for job in JOBS if "seed" in schema_of(job).model_fields])
def test_seeds_are_what_torch_takes(job: str) -> None:
    required = [f"{key}=x" for key, field in yaml.safe_load(conf_text(job)).items() if field == "???"]
    assert load_config(job, [*required, f"seed={2**63 - 1}"]).seed == 2**63 - 1
    for seed in ("-1", "99999999999999999999", "0.5"):
        with pytest.raises(UserError, match=rf"^{job}: seed={seed}: input should be "):
            load_config(job, [*required, f"seed={seed}"])


def test_the_sections_of_a_loop_have_the_types_of_their_jobs() -> None:
    given = ["labeled=a", "val=b", "source=c", "out=d"]
    sections = [
        "train={epochs: 010, classes: [1, 02], method: {name: online, rule: top_k}}",
        "train.method.ratio=3",
        "label.flip=yes",
    ]
    config = load_config("self_train", [*given, *sections, "student.init=null", "selection.exclude=[007]"])
    method = {"name": "online", "rule": "top_k", "ratio": "3"}
    assert config.train == {"epochs": 10, "classes": ["1", "02"], "method": method}
    assert (config.student, config.selection) == ({"init": None}, {"exclude": ["007"]})
    student = section_config(
        "self_train: train", "train_backbone", {**config.train, "labeled": "1", "val": "2", "out": "3"}
    )
    assert (student.epochs, student.classes, student.method.model_dump()) == (10, ["1", "02"], method)


def test_of_the_same_keys_the_last_counts_and_mappings_are_joined() -> None:
    given = ["selection.threshold=.9", "batch_size=1", "selection={rule: top_k, per_class: 5}", "batch_size=2"]
    config = load_config("pseudo_label", [*REQUIRED, *given])
    assert (config.batch_size, config.selection.rule, config.selection.per_class) == (2, "top_k", 5)
    assert config.selection.threshold == 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: a\nout: b", "the key out is there twice"),
        ("- a", "not a YAML mapping"),
        ("out: [", "expected the node content"),
        ("a: &a [*a]", "unconstructable recursive node"),
        ("out: !!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_a_wrong_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=f"^train_backbone: config={tmp_path}/mine.yaml: .*{message}") as caught:
        load_config("train_backbone", ["labeled=a", "val=b", f"config={tmp_path}/mine.yaml"])
    assert "\n" not in str(caught.value)


def test_what_a_job_writes_to() -> None:
    assert load_config("pseudo_label", [*REQUIRED, "select=s"]).outputs() == {"table": "out", "select": "s"}
    assert load_config("pseudo_label", [*REQUIRED, "dry_run=true"]).outputs() == {}
    assert load_config("select_pseudo_labels", [*REQUIRED[1:], "out=o"]).outputs() == {"out": "o"}
    assert load_config("vacuum", ["table=t"]).outputs() == {"table": "t"}
    assert load_config("lineage", ["model=m"]).outputs() == {}


@pytest.mark.parametrize("job", ["pseudo_label", "extract_features"])
def test_actors_are_workers(job: str, tmp_path: Path) -> None:
    required = [f"{key}=x" for key, value in yaml.safe_load(conf_text(job)).items() if value == "???"]
    (tmp_path / "mine.yaml").write_text("actors: 3\n")
    assert load_config(job, [*required, "actors=2"]).workers == 2
    assert load_config(job, [*required, f"config={tmp_path}/mine.yaml"]).workers == 3
    for given in (["actors=2", "workers=2"], [f"config={tmp_path}/mine.yaml", "workers=null"]):
        with pytest.raises(UserError, match=f"^{job}: actors and workers: give one of them$"):
            load_config(job, [*required, *given])
    with pytest.raises(UserError, match="workers=0: "):
        load_config(job, [*required, "actors=0"])


@pytest.mark.parametrize(
    "job",
    ["train_backbone", "train_temporal", "extract_features", "pseudo_label", "self_train", "evaluate", "predict_video"],
)
def test_jobs_that_compute_have_a_device(job: str) -> None:
    required = [f"{key}=x" for key, value in yaml.safe_load(conf_text(job)).items() if value == "???"]
    assert load_config(job, required).device == "auto"
    assert ("workers" in schema_of(job).model_fields) == (job not in ("evaluate", "predict_video"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("recipe=online", "recipe: is called method now"),
        ("online.ratio=3", "online.ratio: is called method.ratio now"),
        ("supervised.head=balanced", "supervised.head: is called method.head now"),
        ("meta.strength=.1", "meta.strength: is called method.strength now"),
        ("settings.penalty=1", "settings.penalty: is called method.penalty now"),
        ("pseudo_ratio=1", "pseudo_ratio: is called method.pseudo_ratio now"),
    ],
)
def test_keys_of_earlier_versions_are_refused_with_their_names_of_now(old: str, new: str) -> None:
    with pytest.raises(UserError, match=f"^train_backbone: {new}$"):
        load_config("train_backbone", ["labeled=a", "val=b", "out=c", old])


def test_a_method_is_a_name_or_a_section(tmp_path: Path) -> None:
    (tmp_path / "online.yaml").write_text("method: {name: online, ratio: 3, weight: 2}\n")
    places = ["labeled=a", "val=b", "out=c"]

    def method(*arguments: str) -> dict[str, Any]:
        return dict(load_config("train_backbone", [*places, *arguments]).method)

    file = f"config={tmp_path}/online.yaml"
    assert method() == {"name": "supervised"}
    assert method("method=online", "method.ratio=3") == method("method.ratio=3", "method=online")
    assert method("method=online", "method.ratio=3") == {"name": "online", "ratio": "3"}
    assert method(file, "method.ratio=5") == {"name": "online", "ratio": "5", "weight": "2"}
    assert method(file, "method=online") == {"name": "online", "ratio": "3", "weight": "2"}
    assert method(file, "method=supervised") == {"name": "supervised"}, "the numbers are of another method"
