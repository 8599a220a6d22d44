"""Runs and sweeps on disk: listed, compared, noted on and removed, whatever made them."""
