"""Exports a model artifact to ONNX with a sidecar YAML, once both are found to agree."""

from typing import Any

from ray_fer.job import main


def run(config: Any) -> dict[str, Any]:
    """Imports the work only once the config is known to be right."""
    from ray_fer.jobs.export_onnx import export_onnx

    return export_onnx(config)


if __name__ == "__main__":
    main("export_onnx", run)
