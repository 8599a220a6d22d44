"""Datasets: readers of benchmarks and lists, splits, checks, staging, sampling."""
