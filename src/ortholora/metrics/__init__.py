"""Metrics: the value of one set of predictions, and of many resamples of it."""
