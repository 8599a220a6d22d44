"""The training loop, the engine under it, checkpoints, and what is told of them."""
