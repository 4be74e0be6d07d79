"""Turns a teacher's predictions into pseudo-labels."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.jobs.select_pseudo_labels import select_pseudo_labels

    return select_pseudo_labels(config)


if __name__ == "__main__":
    main("select_pseudo_labels", run)
