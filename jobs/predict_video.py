"""Predicts the expression of every frame of video files."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.jobs.predict_video import predict_video

    return predict_video(config)


if __name__ == "__main__":
    main("predict_video", run)
