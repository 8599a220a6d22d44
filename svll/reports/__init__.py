"""Pages on runs and sweeps."""
