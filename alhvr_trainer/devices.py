"""The device that a command is told to use."""

from __future__ import annotations

from alhvr_trainer.errors import InputError


def check_device(device: str) -> None:
    """The device has a name that nnU-Net knows, and is there.

    Raises:
        InputError: it is not.
    """
    if device not in ("cuda", "cpu", "mps"):
        raise InputError(f'device is {device!r}; it must be "cuda", "cpu" or "mps"')
    if device == "cuda":
        import torch  # here, for the quick commands do without torch

        if not torch.cuda.is_available():
            raise InputError("there is no CUDA device here: use --device cpu")
