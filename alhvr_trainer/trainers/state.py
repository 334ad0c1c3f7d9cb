"""The state of a training beyond nnU-Net's checkpoint: other networks, the method, the history, random generators."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import torch

from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.trainers.checkpoints import load_without_code, refuse_bad_numbers, write_atomically
from alhvr_trainer.trainers.parallel import gather, get_rank
from alhvr_trainer.trainers.partners import unwrapped


def training_state(trainer: Any) -> dict[str, Any]:
    """What nnU-Net's checkpoint of a semi-supervised trainer lacks, the same on all ranks."""
    others = {name: network for name, network in trainer.networks().items() if name != trainer.predicts_with}
    trained = {name: optimizer for name, optimizer in trainer.optimizers.items() if name != "a"}
    return {
        **{f"network_{name}_weights": unwrapped(network).state_dict() for name, network in others.items()},
        **{f"optimizer_{name}_state": optimizer.state_dict() for name, optimizer in trained.items()},
        "settings": trainer.settings.as_dict(),
        "seed": trainer.seed,
        "history": trainer.monitor.history,
    }


def save_with_state(trainer: Any, stock: io.BytesIO, path: str) -> None:
    """Write nnU-Net's checkpoint together with :func:`training_state` and what each rank adds to it. All ranks call it.

    Args:
        trainer: a semi-supervised one.
        stock: what nnU-Net would have written; empty on ranks that write nothing.
        path: of the checkpoint.

    Raises:
        InputError: it holds NaN or Inf, or cannot be written; what stood at ``path`` is still there.
    """
    by_rank = gather({"random_states": random_states(), **trainer.rank_state()})
    if stock.tell() == 0:
        return
    stock.seek(0)
    # our own data a moment ago; but what could not be read again is better noticed now than when training resumes
    checkpoint = load_without_code(stock)
    checkpoint[SETTINGS_KEY] = {**training_state(trainer), "ranks": by_rank}
    refuse_bad_numbers(checkpoint, path)
    write_atomically(checkpoint, path)


def restore_training_state(trainer: Any, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Restore :func:`training_state` from a checkpoint, and what it holds of this rank.

    Returns:
        This rank's random states, for :func:`restore_random_states`; None for a rank that was not there before.
    """
    state = checkpoint[SETTINGS_KEY]
    for name, network in trainer.networks().items():  # a first: partners follow it, see follow_loaded_weights
        predicts = name == trainer.predicts_with
        weights = checkpoint["network_weights"] if predicts else state[f"network_{name}_weights"]
        unwrapped(network).load_state_dict(weights)
    for name, optimizer in trainer.optimizers.items():
        if name != "a":
            optimizer.load_state_dict(state[f"optimizer_{name}_state"])
        for group in optimizer.param_groups:
            group.update(fused=None, foreach=None)  # how it computes: a matter of this training, see static_step
    trainer.seed = state["seed"]
    trainer.monitor.resume(state["history"], trainer.current_epoch)
    by_rank = state.get("ranks", [state])  # version 0.1.0 knew one process
    if get_rank() >= len(by_rank):
        return None
    trainer.load_rank_state(by_rank[get_rank()])
    states: dict[str, Any] = by_rank[get_rank()]["random_states"]
    return states


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators: nnU-Net's initializers and loaders draw from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """States of the global generators of Python, NumPy and torch (CPU and all CUDA devices), as plain values."""
    kind, key, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(key).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore :func:`random_states`; CUDA's only if as many devices are there as when they were saved."""
    random.setstate(states["python"])
    kind, key, *rest = states["numpy"]
    np.random.set_state((kind, np.asarray(key), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
