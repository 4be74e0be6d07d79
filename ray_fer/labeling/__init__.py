"""Labelling: the Ray Data graph, the predictions table, and the selection of pseudo-labels from it."""
