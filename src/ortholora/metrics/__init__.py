"""Metrics: the value of one set of predictions, and of many resamples of it.

`table.py` lists the metrics, and `compute.py` computes them by name. Each stands in the file of its name.
`class_counts.py`, `spread.py` and `answers.py` are what several of them share.
"""
