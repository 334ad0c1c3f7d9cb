"""``alhvr plan_and_preprocess`` as a Python function.

nnU-Net is imported inside the functions: that takes seconds, which ``--help`` should not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alhvr_trainer.config.names import PLANNER_NAME
from alhvr_trainer.data.cases import SPLITS_FILE, all_unlabeled_cases, load_splits, raw_unlabeled_cases
from alhvr_trainer.data.datasets import preprocessed_folder, raw_folder, resolve_dataset, whole_number
from alhvr_trainer.data.raw_dataset import Cases, check_for_hidden_images, images_of_labeled_folder, load_dataset_json
from alhvr_trainer.data.workers import default_processes
from alhvr_trainer.errors import InputError, did_you_mean, one_line

if TYPE_CHECKING:
    from alhvr_trainer.planning.planner import ALHVRPlanner
    from alhvr_trainer.planning.templates import Template

DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
NNUNET_CONFIGURATIONS = (*DEFAULT_CONFIGURATIONS, "3d_cascade_fullres")


def plan_and_preprocess(
    dataset: int | str,
    configurations: str | Sequence[str] | None = None,
    plans_file: str | None = None,
    overwrite_plans_name: str | None = None,
    gpu_memory_target: float | None = None,
    planner: str = PLANNER_NAME,
    num_processes: int | None = None,
    verify_dataset_integrity: bool = True,
    clean: bool = False,
    no_pp: bool = False,
) -> str:
    """nnU-Net's planning and preprocessing with ALHVRPlanner, for labeled and unlabeled cases.

    Args:
        dataset: nnU-Net dataset, as 27, "027" or "Dataset027_ACDC".
        configurations: those to preprocess, separated by commas; default: those of plans_file, else
            2d,3d_fullres,3d_lowres (what the dataset lacks is passed over).
        plans_file: ready plans to lay over the planner's: a name (acdc_2d, abdomenct1k_3d, brats2019_3d,
            demo) or a JSON file, also nnU-Net's plans of another dataset.
        overwrite_plans_name: plans identifier (nnU-Net's -p); default: that of plans_file, else the planner's,
            as ALHVRPlans.
        gpu_memory_target: GB of GPU memory to plan for; default: the planner's, as 8.
        planner: ALHVRPlanner, or nnU-Net's presets for residual encoders: ALHVRPlannerResEncM (8 GB),
            ALHVRPlannerResEncL (24 GB), ALHVRPlannerResEncXL (40 GB).
        num_processes: worker processes; default: nnU-Net's (nnUNet_def_n_proc), at most one per CPU core.
        verify_dataset_integrity: check images and labels of the labeled cases first.
        clean: extract the fingerprint anew although there is one; needed when labeled images have changed.
        no_pp: plan only, no preprocessing.

    Returns:
        Path of the plans file.

    Raises:
        InputError: dataset, unlabeled cases or plans_file cannot be used; the message says what to do.

    Example:
        alhvr plan_and_preprocess -d 27 -c 2d,3d_fullres
        alhvr plan_and_preprocess -d 27 --plans_file acdc_2d
        alhvr plan_and_preprocess -d 27 --planner ALHVRPlannerResEncM
    """
    name = resolve_dataset(dataset)
    processes = default_processes() if num_processes is None else whole_number("num_processes", num_processes)
    template = _template(plans_file)
    wanted = _configuration_names(configurations, template)
    planner_class = _planner(planner)
    plans_name = overwrite_plans_name or (template.plans_name if template else planner_class.default_plans_name)
    _check_configurations(wanted, os.path.join(preprocessed_folder(name), f"{plans_name}.json"))
    flags = {"verify_dataset_integrity": verify_dataset_integrity, "clean": clean, "no_pp": no_pp}
    command = _nnunet_command(name, wanted, planner_class, plans_name, gpu_memory_target, processes)
    print("In nnU-Net's terms:", command, *(f"--{flag}" for flag, is_set in flags.items() if is_set))
    _announce_unlabeled(name)
    if verify_dataset_integrity:
        _verify_labeled(name, processes)
    _extract_fingerprint(name, processes, clean)
    _plan(name, planner_class, template, wanted, plans_name, gpu_memory_target)
    if not no_pp:
        _preprocess(name, plans_name, wanted, processes)
    return os.path.join(preprocessed_folder(name), f"{plans_name}.json")


def _unlabeled_cases(name: str) -> Cases:
    splits = load_splits(raw_folder(name), preprocessed_folder(name))
    return all_unlabeled_cases(raw_folder(name), load_dataset_json(raw_folder(name)), splits)


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


def _check_configurations(wanted: list[str], plans_file: str) -> None:
    from alhvr_trainer.planning.replanning import plans_before

    known = dict.fromkeys([*NNUNET_CONFIGURATIONS, *plans_before(Path(plans_file))["configurations"]])
    for name in wanted:
        if name not in known:
            raise InputError(f"no configuration {name}{did_you_mean(name, known)}; there can be: {', '.join(known)}")


def _planner(name: str) -> type[ALHVRPlanner]:
    from alhvr_trainer.planning.planner import PLANNERS

    if name not in PLANNERS:
        raise InputError(f"there is no planner {name}; planners: {', '.join(PLANNERS)}")
    return PLANNERS[name]


def _nnunet_command(
    name: str,
    configurations: list[str],
    planner: type[ALHVRPlanner],
    plans_name: str,
    gpu_memory_target: float | None,
    processes: int,
) -> str:
    command = f"nnUNetv2_plan_and_preprocess -d {int(name[7:10])} -pl {planner.__name__} -c {' '.join(configurations)}"
    command += f" -npfp {processes} -np {processes}"
    command += f" -overwrite_plans_name {plans_name}" if plans_name != planner.default_plans_name else ""
    return command + (f" -gpu_memory_target {gpu_memory_target:g}" if gpu_memory_target is not None else "")


def _announce_unlabeled(name: str) -> None:
    from alhvr_trainer.data.preprocessing import remove_other_cases

    dataset_json = load_dataset_json(raw_folder(name))
    check_for_hidden_images(raw_folder(name), dataset_json)
    cases = _unlabeled_cases(name)
    in_folders = len(raw_unlabeled_cases(raw_folder(name), dataset_json))
    with_images = {*cases, *images_of_labeled_folder(raw_folder(name), dataset_json)}
    removed = remove_other_cases(preprocessed_folder(name), with_images)
    print(f"{len(cases)} unlabeled cases: {in_folders} in folders, {len(cases) - in_folders} in {SPLITS_FILE}")

    if removed:
        print(f"removed what was preprocessed of cases that have no images any more: {', '.join(removed)}")


def _verify_labeled(name: str, processes: int) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    try:
        verify_dataset_integrity(raw_folder(name), processes)
    # what nnU-Net raises for a bad dataset; details of single images are on the screen by then
    except (AssertionError, RuntimeError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{raw_folder(name)} fails nnU-Net's integrity check: {one_line(error)}") from error


def _extract_fingerprint(name: str, processes: int, clean: bool) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

    from alhvr_trainer.data.fingerprint import ALHVRFingerprintExtractor, add_unlabeled_to_fingerprint

    try:
        extract_fingerprint_dataset(
            int(name[7:10]), ALHVRFingerprintExtractor, num_processes=processes, clean=clean, verbose=False
        )
    except InputError:
        raise
    # nnU-Net's worker processes die, or hand on whatever the image libraries raise
    except Exception as error:
        raise InputError(
            f"nnU-Net cannot extract the fingerprint of the labeled cases of {name}: {one_line(error)}; see what it "
            "printed above, and check the images"
        ) from error
    add_unlabeled_to_fingerprint(name, processes)


def _plan(
    name: str,
    planner: type[ALHVRPlanner],
    template: Template | None,
    wanted: list[str],
    plans_name: str,
    gpu_memory_target: float | None,
) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    # the class's name is written into the plans, so it stays
    planner = type(planner.__name__, (planner,), {"template": template, "wanted": tuple(wanted)})
    plan_experiment_dataset(
        int(name[7:10]), planner, gpu_memory_target_in_gb=gpu_memory_target, overwrite_plans_name=plans_name
    )


def _preprocess(name: str, plans_name: str, wanted: list[str], processes: int) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from alhvr_trainer.data.preprocessing import preprocess_unlabeled, unlabeled_folder

    plans = PlansManager(os.path.join(preprocessed_folder(name), f"{plans_name}.json"))
    present = [configuration for configuration in wanted if configuration in plans.available_configurations]
    preprocess_dataset(int(name[7:10]), plans_name, present, num_processes=[processes])
    cases, dataset_json = _unlabeled_cases(name), load_dataset_json(raw_folder(name))
    for configuration in present:
        manager = plans.get_configuration(configuration)
        folder = unlabeled_folder(os.path.join(preprocessed_folder(name), manager.data_identifier))
        print(f"Configuration: {configuration}, {len(cases)} unlabeled cases -> {folder}")
        preprocess_unlabeled(cases, plans, manager, dataset_json, folder, processes)
