"""AAU's first stage: the shape autoencoder of a fold's labels, trained once and kept beside the preprocessed data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from torch import Tensor

from alhvr_trainer.config.files import replacing
from alhvr_trainer.data.batches import Draws
from alhvr_trainer.data.label_loader import Geometry, LabelLoader
from alhvr_trainer.errors import one_line
from alhvr_trainer.trainers.checkpoints import load_without_code
from alhvr_trainer.trainers.shape_autoencoder import LabelCoding, ShapeAutoencoder, train_autoencoder

VERSION = 1
"""Of the network and its training: another one makes other autoencoders."""
AUTHORS_ITERATIONS = 50_000
SHARE_OF_TRAINING = 10
"""By default, the autoencoder gets this part of the training's iterations."""

Weights = dict[str, Tensor]


def new_autoencoder(trainer: Any) -> ShapeAutoencoder:
    """An untrained one for a training's labels and patch size, frozen, on its device."""
    coding = LabelCoding.of(trainer.label_manager)
    made = ShapeAutoencoder(coding.taken, coding.given, trainer.configuration_manager.patch_size)
    return made.to(trainer.device).requires_grad_(False).eval()


def trained_weights(trainer: Any) -> Weights:
    """Weights of the shape autoencoder for a training: those that are kept, or else it is trained, and they are kept.

    It is trained on the labels of the fold's labeled training cases alone. The file's name is a digest of all that it
    is made from, so that other labels, cases, or settings get another file. The training's own random numbers are the
    same whether it was there or not.

    Args:
        trainer: of AAU, whose training has started: its labeled cases are known.

    Raises:
        InputError: its loss is not finite.
    """
    geometry, log = geometry_of(trainer), trainer.print_to_log_file
    source = made_from(trainer, geometry)
    file = kept_file(trainer, source)
    weights = _kept(file)
    if weights is not None:
        log(f"ALHVR: shape autoencoder from {file}")
        return weights
    log(f"ALHVR: training the shape autoencoder on the labels of {len(source['cases'])} cases")
    weights = _train(trainer, geometry, source)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            torch.save({"weights": weights, "made_from": source}, part)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        log(f"ALHVR: WARNING: the shape autoencoder is not kept for other trainings: {one_line(error)}")
    return weights


def made_from(trainer: Any, geometry: Geometry) -> dict[str, Any]:
    """All that the weights depend on, as JSON holds it."""
    settings, labeled, spatial = trainer.settings, trainer.data.labeled, geometry.spatial
    return {
        "version": VERSION,
        "configuration": trainer.configuration_name,
        # as pairs: nnU-Net numbers the channels of regions in this order
        "labels": [[name, label] for name, label in trainer.dataset_json["labels"].items()],
        "cases": {str(case): _digest(np.asarray(labeled.load_case(case)[1][:])) for case in labeled.identifiers},
        "patch_size": [int(length) for length in trainer.configuration_manager.patch_size],
        "cut": [int(length) for length in geometry.cut_size],
        "turned": [geometry.slice_by_slice, spatial.p_rotation, list(spatial.rotation)],
        "scaled": [spatial.p_scaling, list(spatial.scaling)],
        "mirrored": list(geometry.mirror_axes),
        "foreground": float(trainer.oversample_foreground_percent),
        "iterations": iterations_of(trainer),
        "batch_size": settings.shape_batch_size,
        "learning_rate": settings.shape_learning_rate,
        "seed": settings.seed or 0,  # not the one that is drawn where none is set: it would be trained every time
    }


def kept_file(trainer: Any, source: dict[str, Any]) -> Path:
    """Where the weights are kept: not in nnU-Net's own folder, in which all files are cases."""
    folder = Path(trainer.preprocessed_dataset_folder)
    digest = hashlib.blake2b(json.dumps(source, sort_keys=True).encode(), digest_size=16).hexdigest()
    return folder.with_name(f"{folder.name}_shapes") / f"{digest}.pth"


def iterations_of(trainer: Any) -> int:
    """The setting, or a tenth of the training's, at most the authors'."""
    share = trainer.num_epochs * trainer.num_iterations_per_epoch // SHARE_OF_TRAINING
    return int(trainer.settings.shape_iterations or max(1, min(share, AUTHORS_ITERATIONS)))


def geometry_of(trainer: Any) -> Geometry:
    """nnU-Net's rotation, scaling, and mirroring of training patches, as the trainer has them."""
    rotation, slice_by_slice, cut_size, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    patch = trainer.configuration_manager.patch_size
    spatial = SpatialTransform(
        tuple(patch[1:] if slice_by_slice else patch),
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=0.2,
        rotation=rotation,
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
    )
    return Geometry(cut_size, spatial, slice_by_slice, tuple(axes or ()))


def _train(trainer: Any, geometry: Geometry, source: dict[str, Any]) -> Weights:
    seed, rate, log = source["seed"], source["learning_rate"], trainer.print_to_log_file
    with torch.random.fork_rng([trainer.device] if trainer.device.type == "cuda" else []):
        torch.manual_seed(seed)
        autoencoder, batches = new_autoencoder(trainer), iter(label_loader(trainer, geometry, source))
        coding, random = LabelCoding.of(trainer.label_manager), np.random.default_rng(seed)
        train_autoencoder(autoencoder, batches, coding, source["iterations"], rate, random, log)
    return {name: value.cpu() for name, value in autoencoder.state_dict().items()}


def label_loader(trainer: Any, geometry: Geometry, source: dict[str, Any]) -> LabelLoader:
    """Batches of label patches of the fold's labeled training cases.

    Args:
        trainer: of AAU.
        geometry: of the patches.
        source: see :func:`made_from`.
    """
    labeled = trainer.data.labeled
    cases = type(labeled)(labeled.source_folder, list(labeled.identifiers))
    cases.draws = Draws((source["seed"],), 0, (source["foreground"],) * source["batch_size"])
    patch_size = trainer.configuration_manager.patch_size
    return LabelLoader(cases, source["batch_size"], patch_size, trainer.label_manager, geometry, trainer.device)


def _kept(file: Path) -> Weights | None:
    """None: it is not there, or damaged."""
    try:
        weights: Weights = load_without_code(file)["weights"]
        return weights
    except Exception:  # torch raises half a dozen kinds for damaged files
        return None


def _digest(array: np.ndarray) -> str:
    content = np.ascontiguousarray(array)
    return hashlib.blake2b(f"{content.shape}".encode() + content.tobytes(), digest_size=16).hexdigest()
