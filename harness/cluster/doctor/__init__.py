"""Checks of the places where trials will run."""
