"""The drawn benchmark."""
