"""Draws a synthetic face data set: labelled, validation, test, unlabeled buckets and clips."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.synthetic.dataset import draw_faces

    return draw_faces(config)


if __name__ == "__main__":
    main("draw_faces", run)
