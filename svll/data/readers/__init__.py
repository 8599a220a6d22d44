"""One file for each benchmark: its files become records."""
