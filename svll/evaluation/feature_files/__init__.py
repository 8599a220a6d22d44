"""Feature files evaluated: opened, scored, compared; scores written."""
