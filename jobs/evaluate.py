"""Evaluates a model on labelled pictures."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.jobs.evaluate import evaluate

    return evaluate(config)


if __name__ == "__main__":
    main("evaluate", run)
