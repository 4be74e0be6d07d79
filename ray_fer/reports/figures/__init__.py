"""The figures of an evaluation, one per file.

A file NAME.py holds ``CAPTION`` and ``draw``, which returns PNG bytes. NAME stands in a list of
`ray_fer.reports.evaluation`, which says whether ``draw`` takes the metrics alone or the predictions too.
"""
