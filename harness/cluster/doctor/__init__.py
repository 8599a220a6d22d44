"""What trials will meet where they run."""
