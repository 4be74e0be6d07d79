"""Facial-expression recognition from few labels and buckets of unlabeled faces, on Ray."""
