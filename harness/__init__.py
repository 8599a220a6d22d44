"""Machinery for experiments: configuration, runs, data pipelines, training loop, clusters."""
