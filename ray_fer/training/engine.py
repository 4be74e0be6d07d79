"""A recipe's model under DeepSpeed, which this file alone knows: averaged gradients, ZeRO, clipping, accumulation.

No compiler is needed: AdamW is torch's, and on a CPU gloo reduces the gradients, for which DeepSpeed would otherwise
compile a shared-memory operator on first use.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_fer.training.loop import Recipe
from ray_fer.training.world import World


class DeepSpeedEngine:
    """The engine of one rank; see `ray_fer.training.loop.Engine`. torch.distributed has to be initialised.

    Args:
        recipe: its ``model`` is wrapped.
        world: the ranks.
        zero_stage: 0 … 3.
        clip_norm: largest gradient norm.
    """

    def __init__(self, recipe: Recipe, world: World, zero_stage: int, clip_norm: float) -> None:
        if world.device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        import deepspeed

        # Also keeps DeepSpeed from asking the compiler which of its operators could be built.
        deepspeed.ops.__compatible_ops__ = {}
        self._stage = zero_stage
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # only read for throughput figures
            "gradient_accumulation_steps": recipe.accumulate,
            # `step` alone says when gradients are complete: some of what was to be accumulated may have been left out.
            "managed_gradient_accumulation": False,
            "zero_optimization": {"stage": zero_stage},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": clip_norm,
            "steps_per_print": 1 << 40,
            "torch_autocast": {"enabled": world.precision == "bfloat16", "dtype": "bfloat16"},
        }
        # Fused: a third of the time of the plain loop on a CPU.
        kind = torch.optim.AdamW if zero_stage else CheckedAdamW
        self._adamw = kind(recipe.parameter_groups(), lr=recipe.learning_rate(0), fused=True)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=recipe.model, optimizer=self._adamw, config=settings, dist_init_required=False
        )
        if world.size == 1 and zero_stage == 0:
            # Nothing is reduced then, but all gradients would be copied to and fro for it.
            self._engine.enable_backward_allreduce = False
        self.model: nn.Module = self._engine.module

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups; a loaded checkpoint puts others in their place."""
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of the model in training mode."""
        outputs: torch.Tensor = self._engine(inputs)
        return outputs

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of ``loss``, divided by the recipe's ``accumulate``."""
        self._engine.backward(loss)

    def step(self) -> bool:
        """One optimiser step with the gradients' mean over the ranks; False where they are not finite on some rank."""
        self._engine.step()
        return self._adamw.applied if isinstance(self._adamw, CheckedAdamW) else bool(self._engine.was_step_applied())

    def whole(self) -> contextlib.AbstractContextManager[Any]:
        """Inside it, every rank sees whole weights, also where ZeRO stage 3 has cut them up."""
        if self._stage < 3:
            return contextlib.nullcontext()
        import deepspeed

        gathered: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            list(self.model.parameters())
        )
        return gathered

    def save(self, folder: Path, tag: str) -> None:
        """Writes weights and optimiser into ``folder/tag``; every rank has to call it."""
        self._engine.save_checkpoint(str(folder), tag=tag)

    def load(self, folder: Path, tag: str) -> None:
        """Takes over what `save` wrote, with the same number of ranks unless ``zero_stage`` is 0."""
        self._engine.load_checkpoint(str(folder), tag=tag)


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
