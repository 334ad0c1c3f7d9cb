"""The folder for nnU-Net's ``nnUNet_extTrainer``; nnU-Net imports :mod:`alhvr` from it."""
