"""A run: its folder, its execution, signals, failures and takeovers."""
