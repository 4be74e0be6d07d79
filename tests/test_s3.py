"""What the libraries that speak S3 are told, by a user's variables and profiles."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_fer import s3, storage
from ray_fer.errors import UserError

PLACE = {
    "aws_endpoint": "https://s3.eu-west-1.amazonaws.com",
    "aws_region": "eu-west-1",
    "aws_allow_http": "false",
    "aws_virtual_hosted_style_request": "false",
}
KEYS = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
UNSIGNED = {"aws_skip_signature": "true"}


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's ~/.aws/config, empty yet; there are no variables and no credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "config"
    file.touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3._resolve.cache_clear()
    return file


def s3fs_meta() -> Any:
    return storage.filesystem("s3://b/t")[0].s3.meta


def test_without_credentials_requests_are_not_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert storage.delta_options("s3://b/t") == {"aws_conditional_put": "etag"} | PLACE | UNSIGNED
    assert storage.lance_options("s3://b/t") == PLACE | UNSIGNED
    polars = storage.polars_arguments("s3://b/t")
    assert polars["credential_provider"] is None
    assert (PLACE | UNSIGNED).items() <= polars["storage_options"].items()
    assert storage.filesystem("s3://b/t")[0].anon


def test_a_profile_names_it_all_and_all_libraries_take_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(
        "[profile lab]\nregion = lab-1\nendpoint_url = http://minio.lan:9000\n"
        "aws_access_key_id = k\naws_secret_access_key = s\naws_session_token = t\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "lab")
    place = PLACE | {"aws_endpoint": "http://minio.lan:9000", "aws_region": "lab-1", "aws_allow_http": "true"}
    keys = KEYS | {"aws_session_token": "t"}
    assert storage.delta_options("s3://b/t") == {"aws_conditional_put": "etag"} | place | keys
    assert storage.lance_options("s3://b/t") == place | keys
    polars = storage.polars_arguments("s3://b/t")
    assert polars["credential_provider"]()[0] == keys
    assert place.items() <= polars["storage_options"].items()
    assert s3fs_meta().endpoint_url == "http://minio.lan:9000"
    assert s3fs_meta().region_name == "lab-1"
    assert not storage.filesystem("s3://b/t")[0].anon


def test_a_services_section_and_virtual_hosts(config: Path) -> None:
    config.write_text(
        "[default]\nservices = mine\ns3 =\n  addressing_style = virtual\n"
        "[services mine]\ns3 =\n  endpoint_url = https://store.lan/\n"
    )
    options = storage.lance_options("s3://faces/t")
    assert options["aws_endpoint"] == "https://faces.store.lan"
    assert options["aws_virtual_hosted_style_request"] == "true"
    assert options["aws_allow_http"] == "false"


def test_variables_go_before_profiles_and_changes_are_noticed(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("[default]\nendpoint_url = http://profile:1\n")
    for name, wanted in (("AWS_ENDPOINT_URL", "http://all:2"), ("AWS_ENDPOINT_URL_S3", "http://s3:3")):
        monkeypatch.setenv(name, wanted)
        assert storage.lance_options("s3://b/t")["aws_endpoint"] == s3fs_meta().endpoint_url == wanted
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert storage.lance_options("s3://b/t") == PLACE | UNSIGNED


def test_credentials_that_expire_are_left_to_who_can_renew_them(config: Path, tmp_path: Path) -> None:
    held = {"Version": 1, "AccessKeyId": "k", "SecretAccessKey": "s", "Expiration": "2100-01-01T00:00:00Z"}
    (tmp_path / "held.py").write_text(f"print({json.dumps(held)!r})")
    config.write_text(f"[default]\nregion = eu-west-1\ncredential_process = {sys.executable} {tmp_path / 'held.py'}\n")
    assert storage.lance_options("s3://b/t") == PLACE
    assert storage.polars_arguments("s3://b/t")["credential_provider"]()[0] == KEYS


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"AWS_PROFILE": "nobody"}, "The config profile (nobody) could not be found"),
        ({"AWS_ENDPOINT_URL": "minio:9000"}, "Invalid endpoint: minio:9000"),
        ({"AWS_ACCESS_KEY_ID": "k"}, "Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_wrong_configuration_is_one_line(
    variables: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        storage.exists("s3://b/t")
    assert str(refused.value) == f"AWS configuration: {problem}"
