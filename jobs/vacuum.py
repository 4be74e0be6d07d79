"""Removes files of a predictions table that nobody needs any more."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.labeling.maintenance import vacuum

    return vacuum(config)


if __name__ == "__main__":
    main("vacuum", run)
