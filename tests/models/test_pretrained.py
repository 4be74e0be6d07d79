from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact, load_model
from ray_fer.models.backbone import build_backbone, normalisation
from ray_fer.models.pretrained import _hub_name as hub_name
from ray_fer.models.pretrained import (
    canonical,
    local_pretrained,
    pretrained_architecture,
    shared_pretrained,
    start_licence,
)
from tests.hub import COMMIT, Hub, serve_hub
from tests.images import tiny_model

NOWHERE = "http://127.0.0.1:1"
MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
VGGFACE2 = Path(__file__).parents[3] / "shared" / "pretrained" / "vggface2_mobilenetv1"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_model(str(tmp_path_factory.mktemp("net") / "m"), mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def hub(net: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    hugging_face_layout(net, folder / "faces" / "net")
    hugging_face_layout(net, folder / "faces" / "bin", pickled=True)
    (folder / "faces" / "bare").mkdir()
    shutil.copy(folder / "faces" / "net" / "config.json", folder / "faces" / "bare")
    (folder / "faces" / "vit").mkdir()
    vit = {"architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 768}
    (folder / "faces" / "vit" / "config.json").write_text(json.dumps(vit))
    with serve_hub(folder) as hub:
        yield hub


def hugging_face_layout(net: Artifact, folder: Path, pickled: bool = False) -> Path:
    """The files that timm pushes to the Hub, licence in the card alone."""
    folder.mkdir(parents=True)
    shutil.copy(net.folder / "config.json", folder)
    (folder / "README.md").write_text("---\nlibrary_name: timm\nlicense: cc-by-nc-4.0\n---\n# Net\n")
    if pickled:
        torch.save(load_model(net).state_dict(), folder / "pytorch_model.bin")
    else:
        shutil.copy(net.folder / "model.safetensors", folder)
    return folder


def fetched(uri: str, home: Path, endpoint: str, *more: str, shared: str = "", **environment: str) -> str:
    """The folder that another process finds for ``uri``, or what it refuses it with; a line for each of ``more``.

    `huggingface_hub` reads its environment when it is imported.
    """
    code = """
import sys
from ray_fer.errors import UserError
from ray_fer.models.pretrained import local_pretrained, shared_pretrained
shared, *uris = sys.argv[1:]
for uri in uris:
    try:
        print(shared_pretrained(uri, shared) if shared else local_pretrained(uri))
    except UserError as error:
        print(error)
"""
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, shared, uri, *more], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "Retry" not in done.stderr, "it waits for a network"
    return done.stdout.removesuffix("\n")


def starts_from(folder: str, net: Artifact) -> bool:
    """Whether a backbone built from ``folder`` has the normalisation and the weights of ``net``, all but the head."""
    assert pretrained_architecture(folder) == "resnet10t"
    model = build_backbone("resnet10t", 5, 32, pretrained=folder)
    ours, theirs = model.state_dict(), load_model(net).state_dict()
    same = all(torch.equal(ours[key], theirs[key]) for key in theirs if not key.startswith("fc."))
    return same and normalisation(model) == (MEAN, STD)


# --- the Hub ---


def test_a_model_of_the_hub_is_fetched_once(hub: Hub, net: Artifact, tmp_path: Path) -> None:
    hub.asked.clear()
    folder = fetched("hf-hub:faces/net", tmp_path, hub.url)
    assert Path(folder).is_relative_to(tmp_path)
    assert starts_from(folder, net)
    assert start_licence(folder) == "cc-by-nc-4.0"
    assert [each for each in hub.asked if each.startswith("GET")] == [
        "GET /faces/net/resolve/main/config.json",
        f"GET /faces/net/resolve/{COMMIT}/README.md",
        f"GET /faces/net/resolve/{COMMIT}/model.safetensors",
    ]
    assert fetched("hf-hub:faces/net", tmp_path, NOWHERE, f"hf-hub:faces/net@{COMMIT}") == f"{folder}\n{folder}"


def test_workers_read_a_copy_beside_the_run(hub: Hub, net: Artifact, tmp_path: Path) -> None:
    place = fetched("hf-hub:faces/bin", tmp_path / "home", hub.url, shared=str(tmp_path / "run"))
    assert Path(place).is_relative_to(tmp_path / "run")
    shutil.rmtree(tmp_path / "home")
    assert starts_from(place, net)
    assert fetched("hf-hub:faces/bin", tmp_path / "home", NOWHERE, shared=str(tmp_path / "run")) == place
    assert shared_pretrained("/a/folder", str(tmp_path)) == "/a/folder"


def test_timm_s_own_names() -> None:
    """A slow test runs a job with one."""
    assert canonical("resnet10t.c3_in1k") == canonical("timm:resnet10t.c3_in1k") == "timm:resnet10t.c3_in1k"
    assert hub_name("timm:resnet10t.c3_in1k") == "timm/resnet10t.c3_in1k"
    assert hub_name("timm:resnet10t") == "timm/resnet10t.c3_in1k", "without a tag, the one that timm prefers"
    assert hub_name("timm:cspnext_l.rsb_a1_in1k") == "munehiro-k/cspnext_l.rsb_a1_in1k"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("timm:resnet10t.none", r"timm has no such weights \(near it: resnet10t\.c3_in1k\)$"),
        ("timm:resnet10_t", r"timm has no such weights \(near it: .*resnet10t"),
        ("timm:gcvit_tiny.in1k", r"not on the Hub; download https://\S+ and give the file and backbone="),
    ],
)
def test_names_that_timm_has_no_weights_for(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^pretrained={uri}: {message}"):
        local_pretrained(uri)


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_without_a_network_it_says_what_to_do(environment: dict[str, str], tmp_path: Path) -> None:
    said = fetched("hf-hub:faces/net", tmp_path, NOWHERE, **environment)
    assert said.startswith(f"pretrained=hf-hub:faces/net: not in {tmp_path}/hub, and the Hub cannot be reached (")
    advice = "run hf download faces/net where there is a network and give its folder, or HF_HOME with a copy of its"
    assert said.endswith(f"; {advice} cache")
    assert "\n" not in said


def test_what_the_hub_lacks(hub: Hub, tmp_path: Path) -> None:
    transformers = "a ViTForImageClassification of transformers, which timm cannot read; give the same net of timm"
    messages = {
        "faces/none": "404 Client Error. Repository Not Found for url: ",
        "faces/net@v2": "404 Client Error. Revision Not Found for url: ",
        "faces/bare": "has none of model.safetensors, pytorch_model.bin",
        "faces/vit": transformers,
        "a/b/c": "Repo id must be in the form",
    }
    hub.asked.clear()
    lines = fetched(
        "hf-hub:faces/none", tmp_path, hub.url, *(f"hf-hub:{name}" for name in list(messages)[1:])
    ).splitlines()
    for (name, message), line in zip(messages.items(), lines, strict=True):
        assert line.startswith(f"pretrained=hf-hub:{name}: {message}")
    assert not [each for each in hub.asked if each.startswith("GET") and "config.json" not in each]


# --- folders and files ---


@pytest.mark.parametrize("pickled", [False, True])
def test_a_folder_in_hugging_face_layout(pickled: bool, net: Artifact, tmp_path: Path) -> None:
    assert starts_from(str(hugging_face_layout(net, tmp_path / "f", pickled)), net)


def test_a_folder_of_transformers_is_refused(hub: Hub) -> None:
    folder = str(hub.folder / "faces" / "vit")
    with pytest.raises(UserError, match=f"^pretrained={folder}: a ViTForImageClassification of transformers, which"):
        pretrained_architecture(folder)


@pytest.mark.skipif(not VGGFACE2.exists(), reason="no shared/pretrained there")
def test_a_net_of_faces() -> None:
    assert pretrained_architecture(str(VGGFACE2)) == "mobilenetv1_100"
    said: dict[str, Any] = json.loads((VGGFACE2 / "config.json").read_text())["pretrained_cfg"]
    model = build_backbone("mobilenetv1_100", 7, 96, pretrained=str(VGGFACE2))
    assert normalisation(model) == (tuple(said["mean"]), tuple(said["std"]))


def test_where_pretrained_weights_are(net: Artifact) -> None:
    assert local_pretrained(f"file://{net.uri}") == net.uri
    assert local_pretrained(f"{net.uri}/model.safetensors") == f"{net.uri}/model.safetensors"
    assert pretrained_architecture(f"{net.uri}/model.safetensors") is None
    alone = build_backbone("resnet10t", 3, 32, pretrained=f"{net.uri}/model.safetensors")
    assert normalisation(alone) == normalisation(build_backbone("resnet10t", 3, 32)) != (MEAN, STD)
    with pytest.raises(UserError, match=r"pretrained=/none: no such file or folder"):
        local_pretrained("/none")


def test_the_spelling_of_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet10t.c3_in1k").mkdir()
    assert canonical("resnet10t.c3_in1k") == str(tmp_path / "resnet10t.c3_in1k"), "a place comes before a name"
    assert canonical("weights.pth") == str(tmp_path / "weights.pth")
    assert canonical("s3://b/net/") == "s3://b/net"


def test_the_licence_of_a_start(net: Artifact, tmp_path: Path) -> None:
    assert start_licence(None) is None
    assert start_licence(f"{net.uri}/model.safetensors") is None
    assert start_licence(net.uri) is None, "timm's licence of resnet10t is that of weights from which it did not start"
    folder = hugging_face_layout(net, tmp_path / "f")
    for card in ("", "---\n[a\n---\n", "---\nlicense:\n---\n"):
        (folder / "README.md").write_text(card)
        assert start_licence(str(folder)) is None
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["license"] = "mit"
    (folder / "config.json").write_text(json.dumps(config))
    assert start_licence(str(folder)) == "mit"
    (folder / "provenance.json").write_text("{}")
    assert start_licence(str(folder)) is None, "an artifact of an earlier version"
