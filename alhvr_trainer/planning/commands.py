"""``alhvr plan_and_preprocess`` and ``alhvr make_split`` as Python functions.

nnU-Net is imported inside the functions: that takes seconds, which ``--help`` should not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from alhvr_trainer.errors import InputError
from alhvr_trainer.planning.splits import choose_splits, split_summary
from alhvr_trainer.settings import PLANNER_NAME, PLANS_NAME
from alhvr_trainer.unlabeled.cases import SPLITS_FILE, all_unlabeled_cases, load_splits, raw_unlabeled_cases
from alhvr_trainer.unlabeled.dataset import Cases, images_of_labeled_folder, load_dataset_json
from alhvr_trainer.unlabeled.workers import default_processes

if TYPE_CHECKING:
    from alhvr_trainer.planning.templates import Template

DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")


def plan_and_preprocess(
    dataset: int | str,
    configurations: str | Sequence[str] | None = None,
    plans_file: str | None = None,
    overwrite_plans_name: str | None = None,
    gpu_memory_target: float | None = None,
    num_processes: int | None = None,
    verify_dataset_integrity: bool = True,
    clean: bool = False,
    no_pp: bool = False,
) -> str:
    """nnU-Net's planning and preprocessing with ALHVRPlanner, for labelled and unlabelled cases.

    Args:
        dataset: nnU-Net dataset, as 27, "027" or "Dataset027_ACDC".
        configurations: those to preprocess, separated by commas; default: those of plans_file, else
            2d,3d_fullres,3d_lowres (what the dataset lacks is passed over).
        plans_file: ready plans to lay over the planner's: a name (acdc_2d, abdomenct1k_3d, brats2019_3d,
            demo) or a JSON file, also nnU-Net's plans of another dataset.
        overwrite_plans_name: plans identifier (nnU-Net's -p); default: that of plans_file, else ALHVRPlans.
        gpu_memory_target: GB of GPU memory to plan for; default: 8.
        num_processes: worker processes; default: nnU-Net's (nnUNet_def_n_proc), at most one per CPU core.
        verify_dataset_integrity: check images and labels of the labelled cases first.
        clean: extract the fingerprint anew although there is one; needed when labelled images have changed.
        no_pp: plan only, no preprocessing.

    Returns:
        Path of the plans file.

    Raises:
        InputError: dataset, unlabelled cases or plans_file cannot be used; the message says what to do.

    Example:
        alhvr plan_and_preprocess -d 27 -c 2d,3d_fullres
        alhvr plan_and_preprocess -d 27 --plans_file acdc_2d
    """
    name = resolve_dataset(dataset)
    processes = default_processes() if num_processes is None else _whole("num_processes", num_processes)
    template = _template(plans_file)
    wanted = _configuration_names(configurations, template)
    plans_name = overwrite_plans_name or (template.plans_name if template else PLANS_NAME)
    flags = {"verify_dataset_integrity": verify_dataset_integrity, "clean": clean, "no_pp": no_pp}
    command = _nnunet_command(name, wanted, plans_name, gpu_memory_target, processes)
    print("In nnU-Net's terms:", command, *(f"--{flag}" for flag, is_set in flags.items() if is_set))
    _announce_unlabeled(name)
    if verify_dataset_integrity:
        _verify_labeled(name, processes)
    _extract_fingerprint(name, processes, clean)
    _plan(name, template, plans_name, gpu_memory_target)
    if not no_pp:
        _preprocess(name, plans_name, wanted, configurations is not None, processes)
    return os.path.join(_preprocessed(name), f"{plans_name}.json")


def make_split(
    dataset: int | str,
    labeled: int | float | str | Sequence[str],
    folds: int = 1,
    validation: int | float | str | Sequence[str] | None = None,
    group: str | None = None,
    seed: int = 0,
    output: str | None = None,
    overwrite: bool = False,
) -> str:
    """Write a splits_final.json that hides the labels of most training cases, to simulate few labels.

    Every fold gets "train" (labelled), "unlabeled" (labels hidden from training) and "val". Stock nnU-Net
    passes over "unlabeled": a supervised training on the same split sees the labelled cases alone. Split
    first, then plan.

    Args:
        dataset: nnU-Net dataset, as 27, "027" or "Dataset027_ACDC".
        labeled: labelled training cases: a number (7), a share of the training cases (0.1) or names
            (patient001,patient002).
        folds: number of folds; several are a cross validation unless "validation" is given.
        validation: validation cases, as for "labeled"; default: a fifth, or the fold's part of a cross
            validation.
        group: regular expression; cases in whose names it finds the same text stay together and count as
            one (patient\\d+ keeps the frames of a patient together).
        seed: of the random choice.
        output: file to write; default: splits_final.json in nnUNet_preprocessed.
        overwrite: replace a file that exists.

    Returns:
        Path of the file.

    Raises:
        InputError: numbers or names do not fit the dataset, or the file exists.

    Example:
        alhvr make_split -d 27 --labeled 7 --group 'patient\\d+'
        alhvr make_split -d 4 --labeled 0.05 --folds 5
    """
    name = resolve_dataset(dataset)
    dataset_json = load_dataset_json(_raw(name))
    cases = sorted(images_of_labeled_folder(_raw(name), dataset_json))
    splits = choose_splits(cases, labeled, _whole("folds", folds), validation, group, int(seed))
    if not all(split["unlabeled"] for split in splits) and not raw_unlabeled_cases(_raw(name), dataset_json):
        raise InputError(f'"labeled" is {labeled}: no case of {name} is left to be unlabelled')
    file = Path(output) if output else Path(_preprocessed(name)) / SPLITS_FILE
    if file.exists() and not overwrite:
        raise InputError(f"{file} exists: use --overwrite to replace it, or --output to write another file")
    in_raw = Path(_raw(name)) / SPLITS_FILE
    if not output and in_raw.exists():
        raise InputError(f"{in_raw} exists, and nnU-Net refuses a different split beside it: remove it first")
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_json(splits, file)
    print(f"{file}:", *split_summary(splits), sep="\n  ")
    return str(file)


def check_environment(*variables: str) -> None:
    """InputError naming the first of nnU-Net's environment variables (default: the data's) that is unset."""
    for variable in variables or ("nnUNet_raw", "nnUNet_preprocessed"):
        if not os.environ.get(variable):
            raise InputError(f"the environment variable {variable} is not set: export {variable}=/a/folder")


def resolve_dataset(dataset: int | str) -> str:
    """``DatasetXXX_Name`` in nnUNet_raw for 27, ``"027"`` or the name itself.

    Raises:
        InputError: an environment variable is missing, or there is no such dataset, or more than one.
    """
    check_environment()
    raw = Path(nnUNet_raw)
    text = str(dataset)
    if not raw.is_dir():
        raise InputError(f"nnUNet_raw is {raw}, which is no folder")
    names = sorted(folder.name for folder in raw.glob("Dataset[0-9][0-9][0-9]_*") if folder.is_dir())
    prefix = f"Dataset{int(text):03d}_" if text.isdigit() else None
    found = [name for name in names if name == text or (prefix and name.startswith(prefix))]
    if not found:
        raise InputError(f"no dataset {text} in {raw}; there are: {', '.join(names) or 'none'}")
    # nnU-Net looks datasets up by their number, in all of its folders
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    same_number = sorted({*found, *map(str, find_candidate_datasets(int(found[0][7:10])))})
    if len(same_number) > 1:
        raise InputError(f"several datasets have the number {found[0][7:10]}: {', '.join(same_number)}")
    return found[0]


def _raw(name: str) -> str:
    return os.path.join(nnUNet_raw, name)


def _preprocessed(name: str) -> str:
    return os.path.join(nnUNet_preprocessed, name)


def _unlabeled_cases(name: str) -> Cases:
    splits = load_splits(_raw(name), _preprocessed(name))
    return all_unlabeled_cases(_raw(name), load_dataset_json(_raw(name)), splits)


def _template(plans_file: str | None) -> Template | None:
    if plans_file is None:
        return None
    from alhvr_trainer.planning.templates import load_template

    return load_template(str(plans_file))


def _configuration_names(configurations: str | Sequence[str] | None, template: Template | None) -> list[str]:
    if configurations is None:
        return list(template.configurations if template else DEFAULT_CONFIGURATIONS)
    names = configurations.split(",") if isinstance(configurations, str) else [str(name) for name in configurations]
    return [name.strip() for name in names if name.strip()]


def _nnunet_command(
    name: str, configurations: list[str], plans_name: str, gpu_memory_target: float | None, processes: int
) -> str:
    command = f"nnUNetv2_plan_and_preprocess -d {int(name[7:10])} -pl {PLANNER_NAME} -c {' '.join(configurations)}"
    command += f" -npfp {processes} -np {processes}"
    command += f" -overwrite_plans_name {plans_name}" if plans_name != PLANS_NAME else ""
    return command + (f" -gpu_memory_target {gpu_memory_target:g}" if gpu_memory_target is not None else "")


def _announce_unlabeled(name: str) -> None:
    cases = _unlabeled_cases(name)
    in_folders = len(raw_unlabeled_cases(_raw(name), load_dataset_json(_raw(name))))
    print(f"{len(cases)} unlabelled cases: {in_folders} in folders, {len(cases) - in_folders} in {SPLITS_FILE}")


def _verify_labeled(name: str, processes: int) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    from alhvr_trainer.unlabeled.images import one_line

    try:
        verify_dataset_integrity(_raw(name), processes)
    # what nnU-Net raises for a bad dataset; details of single images are on the screen by then
    except (AssertionError, RuntimeError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{_raw(name)} fails nnU-Net's integrity check: {one_line(error)}") from error


def _extract_fingerprint(name: str, processes: int, clean: bool) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

    from alhvr_trainer.unlabeled.fingerprint import ALHVRFingerprintExtractor, add_unlabeled_to_fingerprint

    extract_fingerprint_dataset(
        int(name[7:10]), ALHVRFingerprintExtractor, num_processes=processes, clean=clean, verbose=False
    )
    add_unlabeled_to_fingerprint(name, processes)


def _plan(name: str, template: Template | None, plans_name: str, gpu_memory_target: float | None) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    from alhvr_trainer.planning.planner import ALHVRPlanner

    # the name is written into the plans, so it stays
    planner = type(PLANNER_NAME, (ALHVRPlanner,), {"template": template}) if template else ALHVRPlanner
    plan_experiment_dataset(
        int(name[7:10]), planner, gpu_memory_target_in_gb=gpu_memory_target, overwrite_plans_name=plans_name
    )


def _preprocess(name: str, plans_name: str, wanted: list[str], strict: bool, processes: int) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from alhvr_trainer.unlabeled.preprocessing import preprocess_unlabeled, unlabeled_folder

    plans = PlansManager(os.path.join(_preprocessed(name), f"{plans_name}.json"))
    known = [*plans.available_configurations, *DEFAULT_CONFIGURATIONS]
    unknown = [configuration for configuration in wanted if configuration not in known]
    present = [configuration for configuration in wanted if configuration in plans.available_configurations]
    if strict and (unknown or not present):
        raise InputError(
            f"no configuration {', '.join(unknown or wanted)} in the plans of {name}; "
            f"there are: {', '.join(plans.available_configurations)}"
        )
    preprocess_dataset(int(name[7:10]), plans_name, present, num_processes=[processes])
    cases, dataset_json = _unlabeled_cases(name), load_dataset_json(_raw(name))
    for configuration in present:
        manager = plans.get_configuration(configuration)
        folder = unlabeled_folder(os.path.join(_preprocessed(name), manager.data_identifier))
        print(f"Configuration: {configuration}, {len(cases)} unlabelled cases -> {folder}")
        preprocess_unlabeled(cases, plans, manager, dataset_json, folder, processes)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f'"{name}" must be a whole number of at least 1, found {value!r}')
    return value


def _write_json(content: object, file: Path) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, file)
