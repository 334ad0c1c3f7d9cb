"""What the configs of the bundle use beside MONAI; found through the bundle's root, as in the model zoo."""
