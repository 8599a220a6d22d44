"""Before and after training: checks, cost, profile, features of a run."""
