"""ALHVR inside nnU-Net: the trainer, and the two passes of a network."""
