"""``alhvr plan_and_preprocess`` as a Python function.

nnU-Net is imported inside the functions, because that takes seconds and ``--help`` should not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alhvr_trainer.cluster import scheduler as on_cluster
from alhvr_trainer.config.files import check_whole_number, is_name, is_positive
from alhvr_trainer.config.lookup import NOT_PLANS
from alhvr_trainer.config.names import PLANNER_NAME
from alhvr_trainer.data.dataset import Dataset, find_dataset
from alhvr_trainer.data.splits import SPLITS_FILE
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
    scheduler: str | None = None,
) -> str:
    """nnU-Net's planning and preprocessing with ALHVRPlanner, for labeled and unlabeled cases.

    Args:
        dataset: nnU-Net dataset, as 27, "027" or "Dataset027_ACDC".
        configurations: those to preprocess, separated by commas; default: those of plans_file, else
            2d,3d_fullres,3d_lowres (those that the dataset does not have are skipped).
        plans_file: ready plans that override the planner's: a name (acdc_2d, abdomenct1k_3d, brats2019_3d,
            demo) or a JSON file, also nnU-Net's plans of another dataset.
        overwrite_plans_name: plans identifier (nnU-Net's -p); default: that of plans_file, else the planner's,
            as ALHVRPlans.
        gpu_memory_target: GB of GPU memory to plan for; default: the planner's, as 8.
        planner: ALHVRPlanner, or nnU-Net's presets for residual encoders: ALHVRPlannerResEncM (8 GB),
            ALHVRPlannerResEncL (24 GB), ALHVRPlannerResEncXL (40 GB).
        num_processes: worker processes; default: nnU-Net's (nnUNet_def_n_proc), at most one per CPU core.
        verify_dataset_integrity: check images and labels of the labeled cases first.
        clean: extract the fingerprint again even if there is one; needed when labeled images have changed.
        no_pp: plan only, no preprocessing.
        scheduler: address of a Dask cluster, whose workers take the unlabeled cases: docs/cluster.md.

    Returns:
        Path of the plans file.

    Raises:
        InputError: dataset, unlabeled cases or plans_file cannot be used; the message says what to do.

    Example:
        alhvr plan_and_preprocess -d 27 -c 2d,3d_fullres
        alhvr plan_and_preprocess -d 27 --plans_file acdc_2d
        alhvr plan_and_preprocess -d 27 --planner ALHVRPlannerResEncM
    """
    found = find_dataset(dataset)
    processes = default_processes() if num_processes is None else check_whole_number("num_processes", num_processes)
    template = _template(plans_file)
    wanted = _configuration_names(configurations, template)
    planner_class = _planner(planner)
    plans_name = overwrite_plans_name or (template.plans_name if template else planner_class.default_plans_name)
    _check_plans_name(plans_name)
    if gpu_memory_target is not None and not is_positive(gpu_memory_target):
        raise InputError(f'"gpu_memory_target" is {gpu_memory_target!r}; it must be a positive number of GB')
    file = os.path.join(found.preprocessed, f"{plans_name}.json")
    _check_configurations(wanted, file)
    flags = {"verify_dataset_integrity": verify_dataset_integrity, "clean": clean, "no_pp": no_pp}
    command = _nnunet_command(found.name, wanted, planner_class, plans_name, gpu_memory_target, processes)
    print("In nnU-Net's terms:", command, *(f"--{flag}" for flag, is_set in flags.items() if is_set))
    _announce_unlabeled(found)
    if verify_dataset_integrity:
        _verify_labeled(found, processes)
    with on_cluster(scheduler):
        _extract_fingerprint(found, processes, clean)
        _plan(found, planner_class, template, wanted, plans_name, gpu_memory_target)
        if not no_pp:
            _preprocess(found, file, wanted, processes)
    _point_out_misplaced_labels(found)
    return file


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


def _check_plans_name(name: str) -> None:
    """The plans can have a file of this name, which nnU-Net uses for nothing else."""
    if not is_name(name) or name in NOT_PLANS:
        raise InputError(f"plans cannot be called {name!r}: it must be a file name other than {', '.join(NOT_PLANS)}")


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


def _announce_unlabeled(dataset: Dataset) -> None:
    from alhvr_trainer.data.preprocessing import remove_other_cases

    dataset.check_no_hidden_files()
    in_folders, in_all = len(dataset.unlabeled_images), len(dataset.unlabeled)
    print(f"{in_all} unlabeled cases: {in_folders} in folders, {in_all - in_folders} in {SPLITS_FILE}")
    removed = remove_other_cases(dataset.preprocessed, {*dataset.unlabeled, *dataset.images})
    if removed:
        print(f"removed preprocessed cases whose images are gone: {', '.join(removed)}")


def _verify_labeled(dataset: Dataset, processes: int) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    try:
        verify_dataset_integrity(dataset.raw, processes)
    # what nnU-Net raises for a bad dataset; details of single images are on the screen by then
    except (AssertionError, RuntimeError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{dataset.raw} fails nnU-Net's integrity check: {one_line(error)}") from error


def _point_out_misplaced_labels(dataset: Dataset) -> None:
    """Warn again at the end: nnU-Net's own warning is easily missed, and training ignores the headers."""
    from alhvr_trainer.data.label_geometry import misplaced_labels

    cases = misplaced_labels(dataset)
    if cases:
        print(
            f"WARNING: {len(cases)} label maps have another origin or direction than their images: "
            f"{', '.join(cases[:5])}{', ...' if len(cases) > 5 else ''}. Training matches voxels by index and "
            "ignores this; check the overlays (nnUNetv2_plot_overlay_pngs), and resample or reorient the label maps "
            "if they look mirrored or shifted"
        )


def _extract_fingerprint(dataset: Dataset, processes: int, clean: bool) -> None:
    from alhvr_trainer.data.fingerprint import ALHVRFingerprintExtractor, add_unlabeled_to_fingerprint

    try:
        ALHVRFingerprintExtractor(dataset.name, processes, source=dataset).run(overwrite_existing=clean)
    except InputError:
        raise
    # nnU-Net's worker processes die, or hand on whatever the image libraries raise
    except Exception as error:
        raise InputError(
            f"nnU-Net cannot extract the fingerprint of the labeled cases of {dataset.name}: {one_line(error)}; see "
            "what it printed above, and check the images"
        ) from error
    add_unlabeled_to_fingerprint(dataset, processes)


def _plan(
    dataset: Dataset,
    planner: type[ALHVRPlanner],
    template: Template | None,
    wanted: list[str],
    plans_name: str,
    gpu_memory_target: float | None,
) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    attributes = {"source": dataset, "template": template, "wanted": tuple(wanted)}
    planner = type(planner.__name__, (planner,), attributes)  # the class's name is written into the plans, so it stays
    number = int(dataset.name[7:10])
    plan_experiment_dataset(number, planner, gpu_memory_target_in_gb=gpu_memory_target, overwrite_plans_name=plans_name)


def _preprocess(dataset: Dataset, plans_file: str, wanted: list[str], processes: int) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from alhvr_trainer.data.preprocessing import preprocess_unlabeled, unlabeled_folder

    plans, cases = PlansManager(plans_file), dataset.unlabeled
    present = [configuration for configuration in wanted if configuration in plans.available_configurations]
    preprocess_dataset(int(dataset.name[7:10]), plans.plans_name, present, num_processes=[processes])
    for configuration in present:
        manager = plans.get_configuration(configuration)
        folder = unlabeled_folder(os.path.join(dataset.preprocessed, manager.data_identifier))
        print(f"Configuration: {configuration}, {len(cases)} unlabeled cases -> {folder}")
        preprocess_unlabeled(cases, plans, manager, dataset.dataset_json, folder, processes)
