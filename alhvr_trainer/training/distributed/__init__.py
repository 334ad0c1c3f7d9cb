"""Training on several GPUs and several machines (``torch.distributed``)."""
