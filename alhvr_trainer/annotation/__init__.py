"""Which unlabeled cases to annotate next, and taking finished labels into the dataset."""
