"""Trainers for nnU-Net, and what they need: networks, checks, history, cascade, several ranks."""
