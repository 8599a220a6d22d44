"""Sweeps: their files, trials, proposed points and results."""
