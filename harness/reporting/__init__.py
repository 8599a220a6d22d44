"""What runs and sweeps look like: pages and pictures."""
