"""A net that timm does not have: registered by a module of the user's, trained, published and opened again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from ray_fer.errors import UserError
from ray_fer.jobs.backbone_context import build_method
from ray_fer.jobs.backbone_inputs import open_inputs, open_start
from ray_fer.models.artifact import load_model, open_artifact, save_artifact
from ray_fer.models.backbone import build_backbone, check_backbone
from ray_fer.models.engines import describe_embedding
from ray_fer.training.world import World
from tests.training.epochs import run_epochs
from tests.training.toy import CLASSES, config, write_sets

NET = """
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet


default_cfgs = generate_default_cfgs({{"{name}": {{"classifier": "fc", "first_conv": "conv1"}}}})


class {kind}(ResNet):
    added = ("shunt.",)

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.shunt = torch.nn.Linear(self.num_features, self.num_features)
        torch.nn.init.zeros_(self.shunt.weight)
        torch.nn.init.zeros_(self.shunt.bias)

    def forward_head(self, x, pre_logits=False):
        x = super().forward_head(x, pre_logits=True)
        x = x + self.shunt(x)
        return x if pre_logits else self.fc(x)


@register_model
def {name}(pretrained=False, **arguments):
    arguments = dict(block=BasicBlock, layers=(1, 1, 1, 1), channels=(16, 24, 32, 40), stem_width=16) | arguments
    return build_model_with_cfg({kind}, "{name}", pretrained, **arguments)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module in the current folder, of another name in every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"nets_{abs(hash(request.node.name)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(NET.format(kind="Shunted", name=f"{name}_small"))
    return name


def saved(uri: Path, model: torch.nn.Module) -> None:
    places = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "metrics": {}, "provenance": {}}
    save_artifact(str(uri), model, classes=CLASSES, image_size=32, **places)  # type: ignore[arg-type]


def test_it_opens_again_in_a_process_that_has_not_imported_its_module(module: str, tmp_path: Path) -> None:
    model = build_backbone(f"{module}:{module}_small", 3, 32)
    saved(tmp_path / "model", model)
    artifact = open_artifact(str(tmp_path / "model"))
    assert artifact.architecture == f"{module}:{module}_small"
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load_model(artifact)(images), model.eval()(images))
    check = (
        "from ray_fer.models.artifact import load_model, open_artifact\n"
        f"print(type(load_model(open_artifact({str(tmp_path / 'model')!r}))).__name__)"
    )
    answer = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout == "Shunted\n"


def test_a_run_trains_it_and_starts_from_it(module: str, tmp_path: Path) -> None:
    folder = write_sets(tmp_path / "faces", (4, 4, 4))
    told = config(folder, f"backbone={module}:{module}_small", "batch_size=8", "epochs=1")
    method = build_method(open_inputs(told), World())
    run_epochs(method, range(1))
    saved(tmp_path / "model", method.ema_model)
    init, backbone = open_start(config(folder, "backbone=null", f"init={tmp_path / 'model'}"))
    assert init is not None
    assert backbone == f"{module}:{module}_small"


def test_it_starts_from_a_net_that_lacks_what_it_adds(module: str, tmp_path: Path) -> None:
    text = NET.format(kind="Plain", name="plain_net_small")
    lines = [line for line in text.splitlines() if "shunt" not in line]
    (tmp_path / "plain_net.py").write_text("\n".join(lines))
    plain = build_backbone("plain_net:plain_net_small", 3, 32)
    saved(tmp_path / "plain", plain)
    init = open_artifact(str(tmp_path / "plain"))
    model = build_backbone(f"{module}:{module}_small", 3, 32, init=init, classes=CLASSES)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), plain.eval()(images))


def test_what_is_not_there_is_one_line(module: str, tmp_path: Path) -> None:
    for name, said in (
        (
            "nosuch_module:net",
            r"^backbone=nosuch_module:net: no such module on .*, in the current folder or installed$",
        ),
        (f"{module}:nosuch", rf"^backbone={module}:nosuch: timm has no such model"),
    ):
        with pytest.raises(UserError, match=said):
            check_backbone(name)
    assert timm.is_model(f"{module}_small")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("        self.feature_info = []", "timm gives no maps of its depths"),
        ("    def forward(self, x):\n        return super().forward(x) + 1", "timm gives other logits of it beside"),
    ],
)
def test_a_net_whose_depths_are_unknown_gives_no_features(module: str, line: str, said: str, tmp_path: Path) -> None:
    """The second does something after its head, which timm's way to the depths does not know."""
    path, after = tmp_path / f"{module}.py", "zeros_(self.shunt.bias)\n"
    path.write_text(path.read_text().replace(after, f"{after}{line}\n"))
    net = build_backbone(f"{module}:{module}_small", 2, 32)
    normal = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    artifact = save_artifact(
        f"{tmp_path}/net", net, classes=("a", "b"), image_size=32, metrics={}, provenance={}, **normal
    )
    with pytest.raises(UserError, match=f"^embed=true: teacher={tmp_path}/net: {said}"):
        describe_embedding(artifact)
