"""Metrics: arrays in, numbers out. What trainer and benchmarks compare images by."""
