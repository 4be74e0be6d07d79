"""A method that learns without labels: classes and size come from ``init``, and nothing of it reads a labelled face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_fer.errors import UserError
from ray_fer.jobs.backbone_context import build_method
from ray_fer.jobs.backbone_inputs import open_inputs
from ray_fer.jobs.held_out import list_unlabeled, read_unlabeled
from ray_fer.methods.base import BackboneMethod
from ray_fer.models.artifact import save_artifact
from ray_fer.models.backbone import build_backbone
from ray_fer.training.world import World
from tests.training.epochs import run_epochs
from tests.training.toy import CLASSES, config, write_faces, write_sets

CONFIDENT = """
import numpy as np

from ray_fer.data.augment import WEAK
from ray_fer.methods.base import BackboneMethod
from ray_fer.training.loop import Batch


class METHOD(BackboneMethod):
    needs = ("unlabeled",)

    def steps(self, epoch):
        faces = self.context.unlabeled
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(faces))
        for number, rows in enumerate(np.resize(order, (self.steps_per_epoch, self.config.batch_size))):
            pixels, _ = faces.images.batch(self.own(rows))
            inputs = self.augmented(pixels, WEAK, self.generator(epoch, number))
            yield Batch(inputs, [faces.uris[row] for row in self.own(rows)])

    def losses(self, outputs, batch):
        log_probs = outputs.float().log_softmax(dim=1)
        return {"entropy": -(log_probs.exp() * log_probs).sum(dim=1).mean()}
"""


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_sets(tmp_path, (8, 8, 8))
    write_faces(tmp_path / "other", (4, 4, 4), seed=4)
    (tmp_path / "confident.py").write_text(CONFIDENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    places: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "metrics": {}, "provenance": {}}
    torch.manual_seed(0)
    save_artifact(
        str(tmp_path / "init"), build_backbone("test_resnet", 3, 32), classes=CLASSES, image_size=32, **places
    )
    return tmp_path


def told(faces: Path, *arguments: str) -> Any:
    given = ("labeled=null", f"init={faces / 'init'}", "method=confident", "image_size=null")
    return config(faces, *given, f"unlabeled=[{faces / 'more'},{faces / 'other'}]", "batch_size=6", *arguments)


def test_it_trains_and_is_validated(faces: Path) -> None:
    inputs = open_inputs(told(faces, "epochs=3", "learning_rate=0.01"))
    assert (len(inputs.labeled), inputs.labeled.classes, inputs.config.image_size) == (0, CLASSES, 32)
    assert inputs.feedback is None
    count, _ = list_unlabeled(inputs, str(faces / "run"))
    uris, domains = read_unlabeled(str(faces / "run"))
    assert count == len(uris) == 36
    assert [Path(uri).parent.name for uri in uris] == [("more", "other")[domain] for domain in domains]
    method = build_method(inputs, World(), uris, domains)
    assert isinstance(method, BackboneMethod)
    assert method.context.unlabeled.domains is not None
    assert np.bincount(method.context.unlabeled.domains).tolist() == [24, 12]
    assert method.steps_per_epoch == 6, "36 unlabeled faces"
    losses = run_epochs(method, range(3))
    assert losses[-1] < losses[0]
    score, metrics = method.validate(2)
    assert 0 <= score <= 1
    assert "feedback_version" not in metrics
    twin = build_method(inputs, World(), uris, domains)
    twin.load_state(method.state(), method.tensors())
    assert twin.state() == method.state()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init=null"], r"^labeled=null: give init=, which has the classes and the size$"),
        (
            ["init=null", "method=supervised"],
            r"^labeled=null: give init=, which .* size, and a method without labels, which supervised needs$",
        ),
        (["labeled=train/manifest.csv"], r"^method=confident: takes no labeled=$"),
        (["method=supervised", "unlabeled=null"], r"^method=supervised: needs labeled=$"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: list[str], message: str, faces: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_inputs(told(faces, *arguments))
