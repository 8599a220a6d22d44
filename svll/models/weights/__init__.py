"""Weights of others and our own."""
