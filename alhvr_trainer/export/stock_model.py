"""Export a trained model as a stock nnU-Net model: a zip that needs no plugin to predict or fine-tune."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from alhvr_trainer.bundle.scripts.overwriting import overwritten_input
from alhvr_trainer.config.files import read_object
from alhvr_trainer.config.names import TRAINER_NAME, UNLABELED_KEY, WEIGHTS_FILE
from alhvr_trainer.errors import InputError, one_line

if TYPE_CHECKING:
    from alhvr_trainer.models import Member, TrainedModel

STOCK_TRAINER = "nnUNetTrainer"


def export_nnunet(
    dataset: int | str,
    configuration: str,
    fold: int | str | tuple[int | str, ...] = 0,
    plans: str | None = None,
    output: str = "model.zip",
    network: str = "a",
    trainer: str = TRAINER_NAME,
    weights_file: str = WEIGHTS_FILE,
) -> Path:
    """Write a trained model as a zip that any nnU-Net installs and predicts with, without this package.

    Stands for ``nnUNetv2_export_model_to_zip``, which would keep a trainer name that only this package knows.
    The other side types what the command prints::

        nnUNetv2_install_pretrained_model_from_zip model.zip
        nnUNetv2_predict -i IN -o OUT -d Dataset027_ACDC -c 2d -tr nnUNetTrainer -p ALHVRPlans -f 0

    The checkpoints keep what prediction and fine-tuning (``nnUNetv2_train -pretrained_weights``) need;
    optimizer states and everything of the semi-supervised training stay behind.

    Args:
        dataset: id or name.
        configuration: e.g. 2d or 3d_fullres.
        fold: a fold, several ("0,1") or "all".
        plans: plans identifier; default: that of the only such model, else ALHVRPlans.
        output: the zip file; an existing one is replaced once the new one is complete.
        network: "a", "b", or "both": an ensemble of two as if they were folds, fold_0 = a and fold_1 = b.
            Each of several folds gives two: fold_0 = a and fold_1 = b of the first, fold_2 and fold_3 of the
            next.
        trainer: trainer class that the model was trained with.
        weights_file: name of the checkpoint file in the fold's folder.

    Returns:
        The zip file.

    Raises:
        InputError: the model, a checkpoint or the network asked for does not exist, or the zip cannot be
            written.

    Example:
        alhvr export_nnunet -d 27 -c 2d -f 0 -p ALHVRPlans -o model.zip
    """
    from alhvr_trainer.models import find_model, model_members

    target = Path(output)
    if target.is_dir():
        raise InputError(f"output {target} is a folder; name a zip file")
    if target.exists() and not _is_exported_model(target):
        raise InputError(f"output {target} already exists and is not an exported model; choose another name")
    model = find_model(dataset, configuration, fold, plans, trainer, weights_file)
    problem = overwritten_input([path for path in model.folder.rglob("*") if path.is_file()], [target])
    if problem:
        raise InputError(problem)
    members = dict(_numbered(model, model_members(model, network), network))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".alhvr_export_", dir=target.parent) as scratch:
            part = Path(scratch) / "model.zip"
            _write_zip(model, members, part, Path(scratch))
            os.replace(part, target)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        raise InputError(f"cannot write {target} ({one_line(error)})") from error
    print(_summary(model, members, target))
    return target


def _is_exported_model(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(PurePosixPath(name).name == "plans.json" for name in archive.namelist())


def _numbered(model: TrainedModel, members: list[Member], network: str) -> list[tuple[int | str, Member]]:
    """Members with the fold that each becomes: its own, or counted up where two come from one fold."""
    if network == "both":
        return list(enumerate(members))
    return list(zip(model.folds, members, strict=True))


def _write_zip(model: TrainedModel, members: dict[int | str, Member], zip_file: Path, scratch: Path) -> None:
    import torch

    folder = f"{model.dataset}/{STOCK_TRAINER}__{model.plans_name}__{model.configuration}"
    with zipfile.ZipFile(zip_file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _json_files(model).items():
            archive.writestr(f"{folder}/{name}", json.dumps(content, indent=4))
        for fold, member in members.items():
            print(f"{member} -> {folder}/fold_{fold}/checkpoint_final.pth")
            part = scratch / "checkpoint.pth"
            torch.save(_stock_checkpoint(model, member, fold), part)
            # weights hardly compress
            archive.write(part, f"{folder}/fold_{fold}/checkpoint_final.pth", zipfile.ZIP_STORED)


def _json_files(model: TrainedModel) -> dict[str, Any]:
    files: dict[str, Any] = {"plans.json": model.plans, "dataset.json": model.dataset_json}
    fingerprint = model.folder / "dataset_fingerprint.json"
    if fingerprint.is_file():
        content = read_object(fingerprint)
        content.pop(UNLABELED_KEY, None)
        files[fingerprint.name] = content
    return files


def _stock_checkpoint(model: TrainedModel, member: Member, fold: int | str) -> dict[str, Any]:
    return {
        "network_weights": member.weights,
        "init_args": {
            "plans": model.plans,
            "configuration": model.configuration,
            "fold": fold,
            "dataset_json": model.dataset_json,
        },
        "trainer_name": STOCK_TRAINER,
        "inference_allowed_mirroring_axes": member.checkpoint.get("inference_allowed_mirroring_axes"),
    }


def _summary(model: TrainedModel, members: dict[int | str, Member], target: Path) -> str:
    size = target.stat().st_size / 2**20
    folds = " ".join(map(str, members))
    return (
        f"wrote {target} ({size:.1f} MiB, {len(members)} network{'s' if len(members) > 1 else ''})\n"
        f"install and use it with stock nnU-Net:\n"
        f"  nnUNetv2_install_pretrained_model_from_zip {target}\n"
        f"  nnUNetv2_predict -i IN -o OUT -d {model.dataset} -c {model.configuration} "
        f"-tr {STOCK_TRAINER} -p {model.plans_name} -f {folds}"
    )
