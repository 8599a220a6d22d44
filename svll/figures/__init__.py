"""What results look like: pages and figures of a run's features."""
