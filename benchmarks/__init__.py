"""Measurements; docs/benchmarks.md holds the results."""
