"""How one driver keeps several GPUs busy: `python -m benchmarks.labeling.simulated_gpus`.

Ray is told that this machine has GPUs. Their engine sleeps as long as a card that does RATE images per second would
compute, and decoding hands over grey crops without reading, so that what remains is the driver, the listing, the diff,
the hand-over of the pixels, the rows, the files and the commits: all on the cores that this machine has.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.labeling.overhead import link_pictures, write_material
from benchmarks.results import RESULTS, write_results
from ray_fer.config import load_config
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.synthetic.plan import CLASSES

RATE = 10_000


class Sleeping:
    """An engine that takes its time and computes nothing."""

    def __call__(self, pixels: Any) -> Any:
        """Logits float32 (B, K), after B / RATE seconds."""
        time.sleep(len(pixels) / RATE)
        return np.tile(np.arange(len(CLASSES), dtype=np.float32), (len(pixels), 1))


def simulate() -> None:
    """Runs in every worker before anything else."""
    from ray_fer.labeling import worker
    from ray_fer.labeling.unit import EVERY_TEACHER, Decoded, Row
    from ray_fer.models import engines

    def grey(keys: Any, *, image_sizes: Any, batch_size: int, **_: Any) -> Any:
        columns = keys.select(["uri", "identity", "source"]).to_pylist()
        rows = [Row(**row, status="ok", digest=number.to_bytes(16)) for number, row in enumerate(columns)]
        pixels = {size: np.full((len(rows), size, size, 3), 128, np.uint8) for size in image_sizes}
        yield Decoded(rows, [EVERY_TEACHER] * len(rows), pixels)

    engines.make_engine = lambda *_, **__: Sleeping()  # type: ignore[assignment]
    worker.decode_items = grey  # type: ignore[assignment]


def main() -> None:
    """Measures, and writes ``labeling-simulated-gpus.md`` and ``.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=500_000)
    parser.add_argument("--gpus", type=int, nargs="+", default=(1, 2, 4, 8))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ray-fer-bench")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    teacher, pictures = write_material(arguments.work)
    folder = link_pictures(arguments.work / f"links-{arguments.size}", pictures, arguments.size)
    rates = {}
    for gpus in arguments.gpus:
        ray.init(
            address="local",
            num_cpus=2 + gpus,
            num_gpus=gpus,
            logging_level="warning",
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": simulate, "env_vars": {"CUDA_VISIBLE_DEVICES": ""}},
        )
        rates[gpus] = _rate(folder, teacher)
        ray.shutdown()
    facts = {"images": arguments.size, "rate_of_a_gpu": RATE, "images_per_second": rates}
    write_results(arguments.out, "labeling-simulated-gpus", facts, markdown)


def _rate(folder: Path, teacher: Path) -> float:
    """Images per second from the first finished unit to the last."""
    with tempfile.TemporaryDirectory() as target:
        places = [f"source={folder}", f"teacher={teacher}", f"table={target}/t"]
        summary = pseudo_label(load_config("pseudo_label", [*places, "device=cuda", "precision=float32"]))
        assert summary["labelled"] == summary["listed"]
        return float(summary["images_per_second"])


def markdown(document: dict[str, Any]) -> str:
    """The table for people."""
    most = document["rate_of_a_gpu"]
    lines = [
        "# One driver, several simulated GPUs",
        "",
        f"{document['machine']}, {document['date']}; {document['images']} images, from the first finished unit to the",
        f"last. Each GPU is an actor that sleeps as a card of {most} images/s would compute; all else runs on the",
        "cores.",
        "",
        "| GPUs | images/s | of what they could |",
        "|---:|---:|---:|",
    ]
    for gpus, rate in document["images_per_second"].items():
        lines += [f"| {gpus} | {rate:,.0f} | {rate / (int(gpus) * most):.0%} |"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
