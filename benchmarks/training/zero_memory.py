"""Memory of ZeRO's stages on two ranks over gloo: `python -m benchmarks.training.zero_memory`.

Every stage runs in processes of its own. Counted is the resident memory of a rank beyond what it has once everything is
imported and the model and its averaged copy are made: with the engine, after the last step, and at the peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.results import RESULTS, write_results
from ray_fer.models.backbone import build_backbone, checkpoint_activations
from ray_fer.training.engine import DeepSpeedEngine
from ray_fer.training.optimisation import Ema, parameter_groups
from ray_fer.training.world import World

ROOT = Path(__file__).parents[2]
RANKS, STEPS, CLASSES, MIB = 2, 4, 8, 1 << 20


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """On this rank: MiB after the steps and at their peak, beyond what there was before the engine."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(arguments.rank)
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401  its import is not what is measured

    meeting = f"file://{arguments.meeting}"
    dist.init_process_group("gloo", init_method=meeting, rank=arguments.rank, world_size=RANKS)
    torch.manual_seed(0)
    model = build_backbone(arguments.backbone, CLASSES, arguments.image_size)
    ema = Ema(model, 0.99)
    if arguments.checkpoint_activations:
        checkpoint_activations(model, arguments.backbone)
    method: Any = SimpleNamespace(
        model=model,
        accumulate=1,
        parameter_groups=lambda: parameter_groups(model, 0.05),
        learning_rate=lambda step: 1e-3,
    )
    before = memory()["VmRSS"]
    engine = DeepSpeedEngine(method, World(arguments.rank, RANKS, RANKS), arguments.stage)
    started = memory()["VmRSS"]
    for _ in range(STEPS):
        inputs = torch.randn(arguments.batch // RANKS, 3, arguments.image_size, arguments.image_size)
        engine.backward(F.cross_entropy(engine(inputs), torch.randint(CLASSES, (len(inputs),))))
        engine.step()
        with engine.gathered():
            ema.update(engine.model)
    after = memory()
    dist.destroy_process_group()
    return {
        "engine": (started - before) / MIB,
        "after_steps": (after["VmRSS"] - before) / MIB,
        "peak": (after["VmHWM"] - before) / MIB,
    }


def memory() -> dict[str, int]:
    """Bytes that this process has in memory now (VmRSS) and had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":") for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name: int(value.split()[0]) << 10 for name, value in found.items()}


def main() -> None:
    """Measures every stage and writes ``training-zero-memory.md`` and ``.json``; with ``--rank``, is one rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=32, help="pictures a step, over both ranks")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--stage", type=int, default=0)
    parser.add_argument("--meeting")
    parser.add_argument("--checkpoint-activations", action="store_true")
    arguments = parser.parse_args()
    if arguments.rank is not None:
        print(json.dumps(measure(arguments)))
        return
    rows = []
    for stage, checkpointed in [*((stage, False) for stage in range(4)), (0, True)]:
        ranks = both_ranks(stage, checkpointed)
        rows.append({"stage": stage, "checkpoint_activations": checkpointed, "ranks": ranks})
        print(json.dumps(rows[-1]), file=sys.stderr)
    model = build_backbone(arguments.backbone, CLASSES, arguments.image_size)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / MIB
    facts = {key: getattr(arguments, key) for key in ("backbone", "image_size", "batch")}
    write_results(arguments.out, "training-zero-memory", facts | {"weights_mib": weights, "rows": rows}, markdown)


def both_ranks(stage: int, checkpointed: bool) -> list[dict[str, float]]:
    """What each rank measures."""
    with tempfile.TemporaryDirectory() as name:
        options = ["--stage", str(stage), "--meeting", f"{name}/meeting"]
        options += ["--checkpoint-activations"] if checkpointed else []
        command = [sys.executable, "-m", "benchmarks.training.zero_memory", *sys.argv[1:], *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
        settings: Any = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "text": True}
        ranks = [subprocess.Popen([*command, "--rank", str(rank)], **settings) for rank in range(RANKS)]
        outputs = [rank.communicate()[0] for rank in ranks]
        if any(rank.returncode for rank in ranks):
            sys.exit(f"stage {stage} failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def markdown(document: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        "# Memory of ZeRO's stages",
        "",
        f"{document['machine']}, {document['date']}. {document['backbone']} at {document['image_size']} px in float32,",
        f"{document['weights_mib']:.0f} MiB of weights, batches of {document['batch']} on two ranks over gloo. MiB of",
        "a rank beyond the model and its averaged copy: once the engine is made, after the steps, and at the peak. In",
        "float32 ZeRO adds a flat copy of the weights and one more of the rank's own part; two ranks save less.",
        "",
        "| stage | engine | after steps | peak |",
        "|---|---:|---:|---:|",
    ]
    for row in document["rows"]:
        cells = [max(rank[key] for rank in row["ranks"]) for key in ("engine", "after_steps", "peak")]
        name = f"{row['stage']}" + (", activations checkpointed" if row["checkpoint_activations"] else "")
        lines.append(f"| {name} | {' | '.join(f'{cell:.0f}' for cell in cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
