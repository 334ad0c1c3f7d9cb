"""Scans: datasets, folds, images, preprocessing, and the patches that training sees."""
