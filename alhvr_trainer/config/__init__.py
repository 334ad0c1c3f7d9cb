"""What users write: settings, plans, dataset.json, suites; the names in them, and the registry of methods."""
