"""Readers: a benchmark's files become records."""
