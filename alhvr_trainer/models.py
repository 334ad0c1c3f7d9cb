"""Find a trained model, by name or by folder, and take network a or b out of its checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from alhvr_trainer.bundle.scripts.checksums import sha256
from alhvr_trainer.compatibility import nnunet_folder
from alhvr_trainer.config.dataset_json import check_dataset_json
from alhvr_trainer.config.files import is_list_of, is_name, is_whole, read_object
from alhvr_trainer.config.lookup import chosen_plans, dataset_in
from alhvr_trainer.config.names import SETTINGS_KEY, TRAINER_NAME, UNLABELED_KEY, WEIGHTS_FILE
from alhvr_trainer.config.plans import build_network, check_plans
from alhvr_trainer.errors import InputError, did_you_mean, one_line, shown
from alhvr_trainer.trainers.checkpoints import read_checkpoint

NETWORKS = ("a", "b", "both")
MODEL_FOLDERS = "*__*__*"


@dataclass(frozen=True)
class TrainedModel:
    """A model folder of nnU-Net and the folds to take from it."""

    dataset: str
    configuration: str
    trainer: str
    plans_name: str
    folds: tuple[int | str, ...]
    folder: Path
    weights_file: str
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    """Without what only training needs: the folders of unlabeled images."""

    @property
    def plans_manager(self) -> PlansManager:
        return PlansManager(self.plans)

    @property
    def configuration_manager(self) -> ConfigurationManager:
        return self.plans_manager.get_configuration(self.configuration)

    @property
    def num_channels(self) -> int:
        return determine_num_input_channels(self.plans_manager, self.configuration_manager, self.dataset_json)

    @property
    def num_outputs(self) -> int:
        return int(self.plans_manager.get_label_manager(self.dataset_json).num_segmentation_heads)

    def checkpoint_path(self, fold: int | str) -> Path:
        return self.folder / f"fold_{fold}" / self.weights_file

    @property
    def origin(self) -> list[dict[str, str]]:
        """Which model makes a prediction: for each fold the folder's name, and checkpoint file and SHA-256 digest."""
        files = sorted(self.checkpoint_path(fold) for fold in self.folds)
        return [
            {"model": self.folder.name, "checkpoint": f"{file.parent.name}/{file.name}", "sha256": sha256(file)}
            for file in files
        ]


@dataclass(frozen=True)
class Member:
    """One network to export: where it comes from and its weights."""

    fold: int | str
    network: str
    weights: dict[str, torch.Tensor]
    checkpoint: dict[str, Any]

    def __str__(self) -> str:
        return f"network {self.network} of fold {self.fold}"


def find_model(
    dataset: int | str,
    configuration: str,
    fold: int | str | tuple[int | str, ...] = 0,
    plans: str | None = None,
    trainer: str = TRAINER_NAME,
    weights_file: str = WEIGHTS_FILE,
) -> TrainedModel:
    """The trained model that nnU-Net keeps under these names.

    Args:
        dataset: id or name, as for ``nnUNetv2_predict -d``.
        fold: a fold, several (``"0,1"`` or a tuple), or ``"all"``.
        plans: identifier; default: that of the only such model, else ALHVRPlans.

    Raises:
        InputError: ``nnUNet_results`` is not set, or the model, a fold or a checkpoint is missing; the
            message says what is there.

    Example:
        >>> find_model(27, "2d").checkpoint_path(0)     # doctest: +SKIP
        PosixPath('…/Dataset027_ACDC/ALHVRTrainer__ALHVRPlans__2d/fold_0/checkpoint_final.pth')
    """
    folds = parse_folds(fold)
    named = {"dataset": str(dataset), "configuration": configuration, "plans": plans or "default", "trainer": trainer}
    for what, value in named.items():
        if not is_name(value):  # it becomes part of paths, here and on the disks of those who unpack an exported model
            raise InputError(f"{what} {shown(value)} is not a name")
    name = dataset_in("nnUNet_results", dataset)
    folders = Path(nnunet_folder("nnUNet_results"), name).glob(MODEL_FOLDERS)
    there = sorted(path.name for path in folders if path.is_dir())
    models = [parts for parts in (model.split("__") for model in there) if len(parts) == 3]
    plans = chosen_plans(plans, (parts[1] for parts in models if (parts[0], parts[2]) == (trainer, configuration)))
    folder = Path(get_output_folder(name, trainer, plans, configuration))
    train_command = f"alhvr train -d {dataset} -c {configuration} -f {folds[0]} -t {trainer} -p {plans}"
    if not folder.is_dir():
        raise InputError(
            f"no trained model {folder}; models of this dataset: {', '.join(there) or 'none'}"
            f"{did_you_mean(folder.name, there)}; train it with: {train_command}"
        )
    names = (name, trainer, plans, configuration)
    return _read_model(
        folder, names, folds, weights_file, f"; finish the training with: {train_command} --continue_training"
    )


def find_model_in_folder(
    model_folder: str | os.PathLike[str],
    fold: int | str | tuple[int | str, ...] = 0,
    weights_file: str = WEIGHTS_FILE,
) -> TrainedModel:
    """The trained model in a folder as nnU-Net writes it, wherever that lies; ``nnUNet_results`` need not be set.

    Args:
        model_folder: its name is TRAINER__PLANS__CONFIGURATION; it holds ``plans.json``, ``dataset.json`` and
            ``fold_X`` folders.
        fold: as for :func:`find_model`.

    Raises:
        InputError: the folder is missing or bears no such name, or a file or fold in it is missing or damaged.

    Example:
        >>> find_model_in_folder("/models/nnUNetTrainer__nnUNetPlans__2d").trainer     # doctest: +SKIP
        'nnUNetTrainer'
    """
    folds = parse_folds(fold)
    folder = Path(os.path.abspath(model_folder))  # the name counts, which a symbolic link may have and its target not
    if not folder.is_dir():
        raise InputError(
            f"model_folder {folder} is {'a file' if folder.exists() else 'missing'}; name the folder of a model"
        )
    parts = folder.name.split("__")
    if len(parts) != 3 or not all(parts):
        raise InputError(
            f"model_folder {folder} is not named TRAINER__PLANS__CONFIGURATION, e.g. nnUNetTrainer__nnUNetPlans__2d; "
            f"such folders in it: {_listing(folder, MODEL_FOLDERS)}"
        )
    return _read_model(folder, (None, *parts), folds, weights_file)


def model_named(
    dataset: int | str | None,
    configuration: str | None,
    fold: int | str | tuple[int | str, ...],
    plans: str | None,
    trainer: str,
    weights_file: str,
    model_folder: str | os.PathLike[str] | None,
) -> TrainedModel:
    """The model by its names or by its folder, whichever is given.

    Raises:
        InputError: neither or both are given; else as :func:`find_model` and :func:`find_model_in_folder`.
    """
    if model_folder is None:
        if dataset is None or configuration is None:
            raise InputError("name the model: dataset and configuration (-d 27 -c 2d), or model_folder")
        return find_model(dataset, configuration, fold, plans, trainer, weights_file)
    given = {"dataset": dataset, "configuration": configuration, "plans": plans}
    given["trainer"] = None if trainer == TRAINER_NAME else trainer
    surplus = [option for option, value in given.items() if value is not None]
    if surplus:
        raise InputError(f"model_folder names the model already; leave out {', '.join(surplus)}")
    return find_model_in_folder(model_folder, fold, weights_file)


def _read_model(
    folder: Path, names: tuple[str | None, ...], folds: tuple[int | str, ...], weights_file: str, remedy: str = ""
) -> TrainedModel:
    """The model in a folder.

    Args:
        folder: nnU-Net's folder of the model.
        names: of data set (None: the one in the plans), trainer, plans and configuration.
        folds: to take from it.
        weights_file: name of the checkpoints.
        remedy: what to do where a checkpoint is missing, for the message.
    """
    if not is_name(weights_file):
        raise InputError(f"weights_file {shown(weights_file)} is not the name of a checkpoint in the fold's folder")
    dataset, trainer, plans_name, configuration = names
    assert trainer and plans_name and configuration
    written = "nnU-Net writes it when training starts"
    dataset_json = read_object(folder / "dataset.json", written)
    dataset_json.pop(UNLABELED_KEY, None)
    plans = read_object(folder / "plans.json", written)
    check_dataset_json(dataset_json, str(folder / "dataset.json"))
    check_plans(plans, configuration, dataset_json, str(folder / "plans.json"))
    model = TrainedModel(
        dataset or plans["dataset_name"],
        configuration,
        trainer,
        plans_name,
        folds,
        folder,
        weights_file,
        plans,
        dataset_json,
    )
    for each in folds:
        path = model.checkpoint_path(each)
        if not path.parent.is_dir():
            raise InputError(f"no fold {each} in {folder}: it holds {_listing(folder, 'fold_*')}")
        if not path.is_file():
            raise InputError(f"no {weights_file} in {path.parent}: it holds {_listing(path.parent, '*.pth')}{remedy}")
    return model


def parse_folds(fold: int | str | tuple[int | str, ...] | list[int | str]) -> tuple[int | str, ...]:
    """Folds as nnU-Net numbers them.

    Raises:
        InputError: neither a whole number of at least 0 nor "all", or a fold twice.

    Example:
        >>> parse_folds("0,1"), parse_folds(3), parse_folds("all")
        ((0, 1), (3,), ('all',))
    """
    parts = fold if isinstance(fold, (tuple, list)) else str(fold).split(",")
    texts = [str(part).strip() for part in parts]
    if not texts or any(text != "all" and not text.isdecimal() for text in texts):
        raise InputError(f'fold is {fold!r}; it must be a number (0), several ("0,1") or "all"')
    folds = tuple("all" if text == "all" else int(text) for text in texts)
    if len(set(folds)) < len(folds):
        raise InputError(f"fold is {fold!r}: a fold is named twice")
    return folds


def one_fold(fold: int | str | tuple[int | str, ...] | list[int | str], why: str) -> int | str:
    """The fold, where there can be one only.

    Raises:
        InputError: as :func:`parse_folds`, or several folds; ``why`` there can be one only.
    """
    folds = parse_folds(fold)
    if len(folds) > 1:
        raise InputError(f"fold is {fold!r}; name one: {why}")
    return folds[0]


def network_weights(checkpoint: dict[str, Any], network: str) -> dict[str, torch.Tensor]:
    """State dict of network ``"a"`` or ``"b"``.

    Raises:
        InputError: network b of a model that has one network only.
    """
    if network not in ("a", "b"):
        raise InputError(f'network is {network!r}; it must be "a" or "b"')
    ours = checkpoint.get(SETTINGS_KEY)
    of_b = ours.get("network_b_weights") if isinstance(ours, dict) else None
    weights = checkpoint["network_weights"] if network == "a" else of_b
    if weights is None:
        raise InputError(
            f"the checkpoint of {checkpoint.get('trainer_name', 'an unknown trainer')} holds one network: "
            'there is no network b, use network "a"'
        )
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(
            f"the checkpoint is damaged: the weights of network {network} are not tensors; use another one"
        )
    return weights


def model_members(model: TrainedModel, network: str = "a") -> list[Member]:
    """The networks to export, in the order in which nnU-Net would average them: fold by fold, a before b.

    Raises:
        InputError: an unknown ``network``, no network b, or weights that do not fit the plans' architecture.
    """
    if network not in NETWORKS:
        raise InputError(f'network is {network!r}; it must be "a", "b" or "both"')
    members = []
    for fold in model.folds:
        checkpoint = read_checkpoint(model.checkpoint_path(fold))
        for letter in ("a", "b") if network == "both" else (network,):
            member = Member(fold, letter, network_weights(checkpoint, letter), checkpoint)
            _check_architecture(model, member)
            _check_mirroring(model, member)
            members.append(member)
    return members


def nnunet_network(model: TrainedModel) -> nn.Module:
    """The network that nnU-Net builds from the plans, without deep supervision; its weights are random."""
    return build_network(model.plans_manager, model.configuration, model.dataset_json)


def _check_architecture(model: TrainedModel, member: Member) -> None:
    """Stock nnU-Net and the bundle build the network from the plans alone: the weights must fit that one."""
    network = nnunet_network(model)
    try:
        network.load_state_dict(member.weights, strict=True)
    except RuntimeError as error:
        raise InputError(
            f"{member} in {model.folder} does not fit the network in its plans ({one_line(error)}): "
            f"trainer {model.trainer} builds another one, which neither nnU-Net nor a bundle can build"
            f"{'' if member.network == 'a' else '; use network a'}"
        ) from error


def _check_mirroring(model: TrainedModel, member: Member) -> None:
    axes = member.checkpoint.get("inference_allowed_mirroring_axes")
    dimensions = len(model.configuration_manager.patch_size)
    if axes is None or (
        isinstance(axes, (tuple, list)) and is_list_of([*axes], lambda a: is_whole(a, 0, dimensions - 1))
    ):
        return
    raise InputError(
        f'"inference_allowed_mirroring_axes" in the checkpoint of {member} is {shown(axes)}; use another one'
    )


def _listing(folder: Path, pattern: str) -> str:
    return ", ".join(sorted(path.name for path in folder.glob(pattern))) or "none"
