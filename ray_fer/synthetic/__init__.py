"""Procedural faces driven by facial action units: data to try and to test everything with, without anyone's pictures.

A drawn face has what real data sets cannot give: a known action-unit vector, exact landmarks, an identity that a split
can be disjoint in, unlimited unlabeled buckets with a bias of our choosing, and clips whose every frame is labelled.
What it is not: evidence about real faces. A number measured here compares two methods, it does not predict AffectNet.
"""
