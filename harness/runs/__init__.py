"""A run: its folder, how it is carried out, stopped and taken over."""
