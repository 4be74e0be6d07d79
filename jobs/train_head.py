"""Trains a head on kept embeddings and publishes it with its backbone."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.jobs.train_head import train_head

    return train_head(config)


if __name__ == "__main__":
    main("train_head", run)
