"""Shows what a teacher sees of a picture and what it predicts."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.jobs.inspect_teacher import inspect_teacher

    return inspect_teacher(config)


if __name__ == "__main__":
    main("inspect_teacher", run)
