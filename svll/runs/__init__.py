"""Before and after training: checks, cost, features, weights of a run."""
