"""The training loop, the engine under it, checkpoints, progress bars and metric writers."""
