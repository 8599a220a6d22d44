"""The drawn benchmark, and the tiny CLIP made on it."""
