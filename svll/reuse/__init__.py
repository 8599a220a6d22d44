"""Results that runs share instead of computing them again."""
