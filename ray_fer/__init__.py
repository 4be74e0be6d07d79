"""Facial-expression recognition from few labels and buckets of unlabeled faces, on Ray."""

__version__ = "0.1.0"
