"""Trains a backbone: the teacher on labelled faces, the student on pseudo-labels too."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.jobs.train_backbone import train_backbone

    return train_backbone(config)


if __name__ == "__main__":
    main("train_backbone", run)
