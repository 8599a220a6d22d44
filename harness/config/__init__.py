"""Typed configuration: recipes and overrides become dataclasses."""
