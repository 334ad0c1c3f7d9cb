"""Training: what all methods have in common, and a file per method."""
