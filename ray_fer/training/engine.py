"""A method's model under DeepSpeed, which this file alone knows: averaged gradients, ZeRO, clipping, accumulation.

No compiler is needed: AdamW is torch's, and on a CPU gloo reduces the gradients, for which DeepSpeed would otherwise
compile a shared-memory operator on first use.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ray_fer.compat.deepspeed import held_weights, link_moments, skip_allreduce, skip_operator_probe
from ray_fer.training.loop import CLIP_NORM, Method
from ray_fer.training.world import World

_MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
    """The engine of one rank; see `ray_fer.training.loop.Engine`. torch.distributed has to be initialised.

    Args:
        method: its ``model`` is wrapped.
        world: the ranks.
        zero_stage: 0 … 3.
    """

    def __init__(self, method: Method, world: World, zero_stage: int) -> None:
        if world.device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        import deepspeed

        skip_operator_probe()
        self._stage, self._rank = zero_stage, world.rank
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # only read for throughput figures
            "gradient_accumulation_steps": method.accumulate,
            # `step` alone says when gradients are complete: some of what was to be accumulated may have been left out.
            "managed_gradient_accumulation": False,
            "zero_optimization": {"stage": zero_stage},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": CLIP_NORM,
            "steps_per_print": 1 << 40,
            "torch_autocast": {"enabled": world.precision == "bfloat16", "dtype": "bfloat16"},
        }
        # Fused: a third of the time of the plain loop on a CPU.
        kind = torch.optim.AdamW if zero_stage else CheckedAdamW
        self._adamw = kind(method.parameter_groups(), lr=method.learning_rate(0), fused=True)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=method.model, optimizer=self._adamw, config=settings, dist_init_required=False
        )
        if world.size == 1 and zero_stage == 0:
            skip_allreduce(self._engine)
        self.model: nn.Module = self._engine.module

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups."""
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of the model in training mode."""
        outputs: torch.Tensor = self._engine(inputs)
        return outputs

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of ``loss``, divided by the method's ``accumulate``."""
        self._engine.backward(loss)

    def step(self) -> bool:
        """One optimiser step with the gradients' mean over the ranks; False where they are not finite on some rank."""
        self._engine.step()
        return self._adamw.applied if isinstance(self._adamw, CheckedAdamW) else bool(self._engine.was_step_applied())

    def gathered(self) -> contextlib.AbstractContextManager[Any]:
        """Inside it, every rank sees whole weights, also where ZeRO stage 3 has cut them up."""
        if self._stage < 3:
            return contextlib.nullcontext()
        import deepspeed

        gathered: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            list(self.model.parameters())
        )
        return gathered

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The model's state by name, whole; every rank has to go through all of it, and copy what it keeps."""
        # A step that was left out leaves at stage 3 weights that were gathered for autocast, so rounded.
        self._engine.empty_partition_cache()
        with self.gathered():
            yield from self.model.state_dict().items()

    def moments(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What AdamW knows of the weights that it has updated, whole, as at any stage and with any number of ranks.

        Every rank has to go through all of it, and copy what it keeps.

        Yields:
            ``NAME/exp_avg`` and ``NAME/exp_avg_sq``, float32 of the weight's shape, and ``NAME/step``, float32 ().
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for parameters, held in self._held():
            state = self._adamw.state.get(held)
            if not state:
                continue
            self._link(parameters, held)
            for parameter in parameters:
                yield f"{names[parameter]}/step", state["step"]
                for key in _MOMENTS:
                    whole = safe_get_full_optimizer_state(parameter, key) if self._stage else state[key]
                    yield f"{names[parameter]}/{key}", whole

    def load_moments(self, moments: Mapping[str, torch.Tensor]) -> None:
        """Takes over, before the first step, what `moments` yielded at any stage and with any number of ranks.

        Weights whose steps are counted together, as at stages 1 to 3, take the largest of their counts, and moments of
        zero where there are none.
        """
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for parameters, held in self._held():
            known = [parameter for parameter in parameters if f"{names[parameter]}/step" in moments]
            if not known:
                continue
            steps = torch.stack([moments[f"{names[parameter]}/step"] for parameter in known])
            zeros = {key: torch.zeros_like(held) for key in _MOMENTS}
            self._adamw.state[held] = {"step": steps.max().to(held.device), **zeros}
            self._link(parameters, held)
            for parameter in known:
                for key in _MOMENTS:
                    self._set(parameter, key, moments[f"{names[parameter]}/{key}"])

    def _held(self) -> list[tuple[list[nn.Parameter], torch.Tensor]]:
        """Which weights AdamW has together, and the tensor of this rank's part of them that it has for them."""
        if self._stage == 0:
            return [([weight], weight) for group in self.groups for weight in group["params"]]
        return held_weights(self._optimizer, self._stage)

    def _link(self, parameters: list[nn.Parameter], held: torch.Tensor) -> None:
        if self._stage in (1, 2):
            link_moments(parameters, held, self._adamw.state)

    def _set(self, parameter: nn.Parameter, key: str, whole: torch.Tensor) -> None:
        from deepspeed import utils

        if self._stage == 0:
            self._adamw.state[parameter][key].copy_(whole)
        elif self._stage == 3:
            # DeepSpeed cuts up itself only what the number of ranks divides.
            part = torch.zeros_like(utils.safe_get_local_optimizer_state(parameter, key))
            own = whole.flatten()[self._rank * len(part) :][: len(part)]
            part[: len(own)] = own
            utils.safe_set_local_optimizer_state(parameter, part, key)
        else:
            utils.safe_set_full_optimizer_state(parameter, whole, key)


class CheckedAdamW(torch.optim.AdamW):
    """AdamW that leaves out a step whose gradients are not finite, as DeepSpeed's ZeRO optimisers do.

    Attributes:
        applied: whether the last step was taken.
    """

    applied = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step, or none."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.applied = bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all())
        return super().step(closure) if self.applied else None
