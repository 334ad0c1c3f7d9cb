"""Rounds of pseudo-labels: a teacher labels the unlabeled cases, a student trains on them, and teaches the next."""
