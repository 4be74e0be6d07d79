"""Runs rounds of label, select, train, validate and feed back."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.jobs.self_train import self_train

    return self_train(config)


if __name__ == "__main__":
    main("self_train", run)
