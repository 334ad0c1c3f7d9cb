"""What the bundle's configs use in addition to MONAI; found through the bundle's root, as in the model zoo."""
