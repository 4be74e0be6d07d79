"""Extracts backbone features of video frames."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.jobs.extract_features import extract_features

    return extract_features(config)


if __name__ == "__main__":
    main("extract_features", run)
