"""Trials on SLURM."""
