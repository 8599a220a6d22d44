"""What runs share instead of computing it again."""
