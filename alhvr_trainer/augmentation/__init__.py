"""nnU-Net's training augmentation for whole batches, as torch code that runs on the training's device."""
