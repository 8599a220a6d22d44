"""Models: CLIP's encoders, prompts, and what ReID adds to them."""
