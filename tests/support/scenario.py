"""nnU-Net's integration scenario with ALHVRTrainer: four kinds of labels, four configurations, several folds.

nnU-Net tests itself on four variants of the Hippocampus set. Here each variant has unlabeled cases as well, from the
folder and from the splits file, and the trainings are tiny. As a script it runs on the real set, or on phantoms:

    python tests/support/scenario.py --work_folder DIR [--data DIR/Dataset004_Hippocampus] [--folds 5] [--output FILE]
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

PLANS = "ALHVRPlans"
TRAINER = "ALHVRTrainer"
CONFIGURATIONS = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")  # in the order that the cascade needs
VARIANTS: dict[str, dict[str, Any]] = {
    "labels": {"labels": {"background": 0, "anterior": 1, "posterior": 2}},
    # label 2 becomes the ignore label
    "ignore": {"labels": {"background": 0, "anterior": 1, "ignore": 2}},
    "regions": {
        "labels": {"background": 0, "hippocampus": [1, 2], "posterior": 2},
        "regions_class_order": [1, 2],
    },
    # every third slice was not annotated
    "regions_ignore": {
        "labels": {"background": 0, "hippocampus": [1, 2], "posterior": 2, "ignore": 3},
        "regions_class_order": [1, 2],
    },
}
SETTINGS = {
    "unlabeled_batch_size": 1,
    "num_epochs": 2,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
}


def dataset_name(variant: str) -> str:
    return f"Dataset{930 + list(VARIANTS).index(variant)}_Scenario_{variant}"


def dataset_id(variant: str) -> str:
    return dataset_name(variant)[7:10]


def make_variant(source: Path, raw: Path, variant: str, folds: int, cases_per_fold: int = 1) -> Path:
    """A raw dataset of one kind of labels; fold i validates its own cases and trains on those of the other folds.

    Args:
        source: a raw nnU-Net dataset with labels 1 and 2; the first cases are labeled here, the next ones become
            one hidden case (key "unlabeled" of the splits), two unlabeled cases and two test cases.
        raw: ``nnUNet_raw``.
        variant: key of VARIANTS.
        folds: number of folds.
        cases_per_fold: labeled cases that a fold validates.
    """
    target = raw / dataset_name(variant)
    for folder in ("imagesTr", "labelsTr", "imagesTr_unlabeled", "imagesTs"):
        (target / folder).mkdir(parents=True)
    cases = sorted(file.name.removesuffix(".nii.gz") for file in (source / "labelsTr").glob("*.nii.gz"))
    labeled = cases[: folds * cases_per_fold + 1]
    others = iter(cases[len(labeled) :])
    for case in labeled:
        shutil.copyfile(source / "imagesTr" / f"{case}_0000.nii.gz", target / "imagesTr" / f"{case}_0000.nii.gz")
        image = sitk.ReadImage(str(source / "labelsTr" / f"{case}.nii.gz"))
        label = sitk.GetArrayFromImage(image).astype(np.uint8)
        if variant == "regions_ignore":
            label[::3] = 3
        changed = sitk.GetImageFromArray(label)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(target / "labelsTr" / f"{case}.nii.gz"))
    for folder in ("imagesTr_unlabeled", "imagesTs"):
        for case in (next(others), next(others)):
            shutil.copyfile(source / "imagesTr" / f"{case}_0000.nii.gz", target / folder / f"{case}_0000.nii.gz")
    content = {"channel_names": {"0": "MRI"}, "numTraining": len(labeled), "file_ending": ".nii.gz"}
    write_json(target / "dataset.json", {**content, **VARIANTS[variant]})
    *shared, hidden = labeled
    validation = [shared[fold * cases_per_fold : (fold + 1) * cases_per_fold] for fold in range(folds)]
    splits = [{"train": [c for c in shared if c not in val], "val": val, "unlabeled": [hidden]} for val in validation]
    write_json(target / "splits_final.json", splits)
    return target


def plan(variant: str, preprocessed: Path, preprocess: tuple[str, ...] = ("2d", "3d_lowres", "3d_fullres")) -> None:
    """Our planner's plans with tiny networks, plus a low resolution and a cascade, as nnU-Net's scenario adds them.

    Args:
        variant: key of VARIANTS.
        preprocessed: ``nnUNet_preprocessed``.
        preprocess: configurations to preprocess.
    """
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess

    plan_and_preprocess(
        dataset_id(variant), "2d,3d_fullres", num_processes=1, verify_dataset_integrity=False, no_pp=True
    )
    file = preprocessed / dataset_name(variant) / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    configurations = plans["configurations"]
    configurations.pop("3d_lowres", None)
    for name, patch in (("2d", [24, 24]), ("3d_fullres", [16, 24, 16])):
        configurations[name].update(batch_size=2, patch_size=patch, alhvr=dict(SETTINGS))
        shrink(configurations[name]["architecture"]["arch_kwargs"], dimensions=len(patch))
    full = configurations["3d_fullres"]
    configurations["3d_lowres"] = {
        **copy.deepcopy(full),
        "data_identifier": f"{PLANS}_3d_lowres",
        "spacing": [2 * step for step in full["spacing"]],
        "next_stage": "3d_cascade_fullres",
    }
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    write_json(file, plans)
    preprocess_dataset(int(dataset_id(variant)), PLANS, preprocess, [1] * len(preprocess))


def shrink(network: dict[str, Any], dimensions: int) -> None:
    """Three stages of 4 features; keeps what the planner chose otherwise."""
    network.update(
        n_stages=3,
        features_per_stage=[4, 4, 4],
        kernel_sizes=[[3] * dimensions] * 3,
        strides=[[1] * dimensions, *[[2] * dimensions] * 2],
        n_conv_per_stage=[1] * 3,
        n_conv_per_stage_decoder=[1] * 2,
    )


def change_length(variant: str, preprocessed: Path, epochs: int) -> None:
    """Number of epochs of all configurations."""
    file = preprocessed / dataset_name(variant) / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        if "alhvr" in configuration:
            configuration["alhvr"]["num_epochs"] = epochs
    write_json(file, plans)


def train(variant: str, configuration: str, fold: int, **flags: Any) -> None:
    """``nnUNetv2_train ... --npz -device cpu``."""
    import torch
    from nnunetv2.run.run_training import run_training

    run_training(
        dataset_id(variant),
        configuration,
        fold,
        TRAINER,
        PLANS,
        export_validation_probabilities=True,
        device=torch.device("cpu"),
        **flags,
    )


def find_best_and_predict(variant: str, folds: int, raw: Path, results: Path) -> dict[str, Any]:
    """nnU-Net's choice among all configurations and their ensembles, then prediction and postprocessing with it."""
    from batchgenerators.utilities.file_and_folder_operations import load_pickle
    from nnunetv2.ensembling.ensemble import ensemble_folders
    from nnunetv2.evaluation.find_best_configuration import (
        dumb_trainer_config_plans_to_trained_models_dict,
        find_best_configuration,
    )
    from nnunetv2.postprocessing.remove_connected_components import apply_postprocessing_to_folder

    numbers = tuple(range(folds))
    models = dumb_trainer_config_plans_to_trained_models_dict([TRAINER], list(CONFIGURATIONS), [PLANS])
    found = find_best_configuration(int(dataset_id(variant)), models, num_processes=1, folds=numbers, strict=True)
    best = found["best_model_or_ensemble"]
    base = results / dataset_name(variant)
    chosen = [model["configuration"] for model in best["selected_model_or_models"]]
    outputs = [predict(variant, name, raw, base / f"predicted_{name}", numbers, len(chosen) > 1) for name in chosen]
    if len(outputs) > 1:
        ensemble_folders([str(output) for output in outputs], str(base / "ensemble"), num_processes=1)
        outputs = [base / "ensemble"]
    functions, arguments = load_pickle(best["postprocessing_file"])
    apply_postprocessing_to_folder(
        str(outputs[0]), str(base / "postprocessed"), functions, arguments, best["some_plans_file"], num_processes=1
    )
    predicted = list((base / "postprocessed").glob("*.nii.gz"))
    return {"chosen": chosen, "postprocessed cases": len(predicted)}


def predict(
    variant: str, configuration: str, raw: Path, output: Path, folds: tuple[int, ...], probabilities: bool = False
) -> Path:
    """``nnUNetv2_predict`` of the test cases; a cascade predicts its previous stage first."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(
        get_output_folder(dataset_id(variant), TRAINER, PLANS, configuration), folds
    )
    previous = predictor.configuration_manager.previous_stage_name
    stage = predict(variant, previous, raw, output.with_name(f"{output.name}_previous"), folds) if previous else None
    predictor.predict_from_files(
        str(raw / dataset_name(variant) / "imagesTs"),
        str(output),
        save_probabilities=probabilities,
        num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
        folder_with_segs_from_prev_stage=None if stage is None else str(stage),
    )
    return output


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2))


def run_configuration(variant: str, configuration: str, folds: int, folders: dict[str, Path]) -> dict[str, Any]:
    """All folds, the first in two goes; then the export and the prediction of the test cases. What was measured."""
    from alhvr_trainer.export.stock_model import export_nnunet

    started = time.time()
    change_length(variant, folders["preprocessed"], 1)
    train(variant, configuration, 0)
    change_length(variant, folders["preprocessed"], SETTINGS["num_epochs"])
    for fold in range(folds):
        train(variant, configuration, fold, continue_training=fold == 0)
    model = folders["results"] / dataset_name(variant) / f"{TRAINER}__{PLANS}__{configuration}"
    summaries = [
        json.loads((model / f"fold_{fold}" / "validation" / "summary.json").read_text()) for fold in range(folds)
    ]
    exported = export_nnunet(
        dataset_id(variant), configuration, tuple(range(folds)), output=str(model.with_suffix(".zip"))
    )
    output = predict(variant, configuration, folders["raw"], model / "predicted", tuple(range(folds)))
    return {
        "variant": variant,
        "configuration": configuration,
        "validated cases": sum(len(summary["metric_per_case"]) for summary in summaries),
        "validation Dice": round(float(np.mean([summary["foreground_mean"]["Dice"] for summary in summaries])), 4),
        "exported bytes": exported.stat().st_size,
        "predicted cases": len(list(output.glob("*.nii.gz"))),
        "seconds": round(time.time() - started),
    }


def main(work_folder: str, data: str | None = None, folds: int = 5, output: str | None = None) -> None:
    """All variants and configurations, then the choice of the best and its prediction; one line each.

    Args:
        work_folder: for everything that is written.
        data: a raw dataset with labels 1 and 2; default: phantoms.
        folds: number of folds.
        output: JSON file for the table.
    """
    work = Path(work_folder)
    folders = {name: work / name for name in ("raw", "preprocessed", "results")}
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(folder)
    for variable, value in (("nnUNet_def_n_proc", "1"), ("nnUNet_n_proc_DA", "0")):
        os.environ.setdefault(variable, value)
    from alhvr_trainer.resources import ext_trainer_folder

    os.environ.update(nnUNet_extTrainer=str(ext_trainer_folder()))
    source = Path(data) if data else phantoms(work / "source", folds + 5)
    rows, chosen = [], {}
    for variant in VARIANTS:
        make_variant(source, folders["raw"], variant, folds)
        plan(variant, folders["preprocessed"])
        for configuration in CONFIGURATIONS:
            rows.append(run_configuration(variant, configuration, folds, folders))
            print(json.dumps(rows[-1]), flush=True)
        chosen[variant] = find_best_and_predict(variant, folds, folders["raw"], folders["results"])
        print(json.dumps(chosen[variant]), flush=True)
    if output:
        from importlib.metadata import version

        versions = {name: version(name) for name in ("alhvr-trainer", "nnunetv2", "torch")}
        content = {"command": " ".join(sys.argv), "versions": versions, "folds": folds}
        write_json(Path(output), {**content, "combinations": rows, "best configuration or ensemble": chosen})


def phantoms(folder: Path, cases: int) -> Path:
    """Stands for the Hippocampus set where it is not at hand: an ellipsoid (1) with a core (2)."""
    from data_builders import make_dataset

    return make_dataset(folder, "Dataset900_Source", labeled=cases, unlabeled=0, shape=(18, 30, 26), spacing=(1, 1, 1))


if __name__ == "__main__":
    import fire

    fire.Fire(main)
