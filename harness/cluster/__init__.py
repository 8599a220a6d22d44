"""Where trials run: jobs of a SLURM cluster, workers on this machine, or one Ray allocation."""
