"""Backbones, model artifacts, teachers and inference engines."""
