"""What users write: settings, plans, dataset.json; the names in them, and the registry of methods."""
