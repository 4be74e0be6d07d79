"""The private names of other packages exist and are what we take them for, in the versions that were checked."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import threading
from pathlib import Path

import pytest
import torch

from ray_fer.compat import deepspeed, ray, timm


@pytest.mark.parametrize(("name", "module"), [("ray", ray), ("deepspeed", deepspeed), ("timm", timm)])
def test_the_installed_version_is_the_checked_one(name: str, module: object) -> None:
    checked = module.CHECKED  # type: ignore[attr-defined]
    assert importlib.metadata.version(name) == checked, f"look through compat/{name}.py, then change CHECKED"


def test_ray_tells_of_this_machine_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray as package

    assert list(inspect.signature(package._private.services.find_bootstrap_address).parameters) == ["temp_dir"]
    monkeypatch.setattr(package._private.utils, "read_ray_address", lambda _: "10.0.0.1:6379")
    assert ray.running_address() == "10.0.0.1:6379"
    assert ray.gpus_here() >= 0
    assert ray.cpus_here() >= 1
    assert hasattr(package._private.worker, "_global_node")
    assert callable(package._private.node.Node.is_head)


def test_ray_is_quiet_by_names_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray as package
    from ray.core.generated import gcs_service_pb2

    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", ray.LOG_LEVEL):
        monkeypatch.delenv(name, raising=False)
    with ray.quiet_start():
        pass
    importlib.import_module(ray.TOKEN_LOGGER)
    assert ray.LOG_LEVEL.encode() in Path(package._raylet.__file__).read_bytes()
    service, method = ray.CHECK_ALIVE.strip("/").split("/")
    assert method in gcs_service_pb2.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods_by_name


def test_ray_data_and_train_call_what_is_overridden() -> None:
    assert list(inspect.signature(ray.ExecutionCallback.on_execution_step).parameters) == ["self", "executor"]
    for name in ("before_worker_group_start", "after_worker_group_start"):
        assert len(inspect.signature(getattr(ray.WorkerGroupCallback, name)).parameters) == 2
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        ray.Other  # noqa: B018


def test_ray_data_s_threads_are_known() -> None:
    from ray.data._internal.block_batching import util

    assert issubclass(ray.StreamingExecutor, threading.Thread)
    assert f'name="{ray.BATCH_THREAD}"' in inspect.getsource(util.iter_threaded)
    thread = threading.Thread(target=threading.Event().wait, args=(0.2,), name=ray.BATCH_THREAD, daemon=True)
    thread.start()
    ray.join_data_threads()
    assert not thread.is_alive()


def test_deepspeed_has_what_its_engine_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    import deepspeed as package
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    deepspeed.skip_operator_probe()
    assert package.ops.__compatible_ops__ == {}
    expected = ["lp_param_list", "flat_hp_partition", "optimizer_state"]
    assert list(inspect.signature(lazy_init_hp_params_optimizer_state).parameters) == expected
    assert "self.enable_backward_allreduce = True" in inspect.getsource(DeepSpeedEngine)
    for kind, names in (
        (DeepSpeedZeroOptimizer_Stage3, ("fp16_groups", "fp32_partitioned_groups_flat")),
        (DeepSpeedZeroOptimizer, ("bit16_groups", "single_partition_of_fp32_groups")),
    ):
        for name in names:
            assert f"self.{name} = []" in inspect.getsource(kind)


def test_timm_names_the_classifier_and_writes_the_config(tmp_path: Path) -> None:
    import timm as package

    model = package.create_model("resnet10t", num_classes=3)
    assert isinstance(getattr(model, timm.classifier_name(model)), torch.nn.Linear)
    assert timm.classifier_name(torch.nn.Linear(1, 1)) == "fc"
    timm.save_config(model, str(tmp_path / "config.json"), {"label_names": ["a", "b", "c"]}, {"mean": (0.5, 0.5, 0.5)})
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["architecture"], written["label_names"]) == ("resnet10t", ["a", "b", "c"])
    assert written["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
