"""Trains the temporal encoder over frame features."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.jobs.train_temporal import train_temporal

    return train_temporal(config)


if __name__ == "__main__":
    main("train_temporal", run)
