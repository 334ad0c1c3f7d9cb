"""Trained models leave the house: as a stock nnU-Net model, and as a MONAI bundle."""
