"""Labels every new or overwritten image of the sources with the teacher's predictions, exactly once."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.jobs.pseudo_label import pseudo_label

    return pseudo_label(config)


if __name__ == "__main__":
    main("pseudo_label", run)
