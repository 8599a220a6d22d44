"""Sweeps: which trials there are, which are proposed, what came out."""
