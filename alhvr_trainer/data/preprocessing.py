"""Preprocess unlabeled cases with nnU-Net's own preprocessor, into their own folder.

The folder is ``<data_identifier>_unlabeled``: nnU-Net takes every case in its own folder for a labeled one.
Files and format are nnU-Net's (``CASE.b2nd``, ``CASE_seg.b2nd``, ``CASE.pkl``); the segmentation holds 0, and
-1 outside the nonzero mask. No label file is read. A case is complete when its ``.pkl`` is there; that file
also says what the data depend on, so that changed images or plans are noticed.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alhvr_trainer.config.dataset_json import channel_names
from alhvr_trainer.config.files import replacing
from alhvr_trainer.config.names import UNLABELED_SUFFIX
from alhvr_trainer.data.case_images import check_channel_count, read_case
from alhvr_trainer.data.dataset import Cases
from alhvr_trainer.data.sources import renewed_stamps, source_stamps
from alhvr_trainer.data.workers import run_on_cases, useful_processes
from alhvr_trainer.errors import InputError

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

PARTIAL = ".partial_"
MOST_VOXELS = 2**33
"""Of a case after resampling, 32 GiB; whole-body CT has a tenth of that."""
RECORD = "preprocessed_with"
"""Key of the properties (``.pkl``) under which the sources of a preprocessed case are written down."""

_FROM_CONFIGURATION = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)


def unlabeled_folder(preprocessed_dataset_folder: str) -> str:
    """The folder of the unlabeled cases that belongs to nnU-Net's folder of a configuration's labeled ones.

    Example:
        >>> unlabeled_folder("nnUNet_preprocessed/Dataset027_ACDC/ALHVRPlans_2d")
        'nnUNet_preprocessed/Dataset027_ACDC/ALHVRPlans_2d_unlabeled'
    """
    return os.path.normpath(preprocessed_dataset_folder) + UNLABELED_SUFFIX


def missing_cases(
    folder: str, cases: Cases, plans_manager: PlansManager, configuration_manager: ConfigurationManager
) -> list[str]:
    """The cases that ``folder`` lacks, or holds from other images or with other settings in the plans.

    Images that have only been copied or touched are read once to see that; their new times are then written down.
    """
    settings = _settings(plans_manager, configuration_manager)
    return [case for case, files in cases.items() if not _is_up_to_date(folder, case, settings, files)]


def remove_other_cases(preprocessed_dataset_folder: str, cases: Collection[str]) -> list[str]:
    """Delete what is left of cases that the raw dataset no longer has, in all configurations.

    A training without the raw data takes every case that it finds.

    Args:
        preprocessed_dataset_folder: ``nnUNet_preprocessed/DatasetXXX_Name``.
        cases: those with images in the raw dataset.

    Returns:
        Names of the others.
    """
    removed = set()
    for file in Path(preprocessed_dataset_folder).glob(f"*{UNLABELED_SUFFIX}/*.pkl"):
        if file.stem not in cases:
            removed.add(file.stem)
            for ending in (".pkl", ".b2nd", "_seg.b2nd"):
                file.with_name(f"{file.stem}{ending}").unlink(missing_ok=True)
    return sorted(removed)


def preprocess_unlabeled(
    cases: Cases,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict[str, Any],
    folder: str,
    num_processes: int,
    show_progress: bool = True,
) -> None:
    """Preprocess those of ``cases`` that :func:`missing_cases` names into ``folder``.

    Args:
        cases: case -> image files, see :class:`~alhvr_trainer.data.dataset.Dataset`.
        plans_manager: nnU-Net's, of the plans to follow.
        configuration_manager: nnU-Net's, of the configuration.
        dataset_json: the dataset's ``dataset.json``.
        folder: see :func:`unlabeled_folder`.
        num_processes: worker processes; 0 or 1 works in this process, and so do few small images.
        show_progress: show a progress bar.

    Raises:
        InputError: an image cannot be used (see :func:`~alhvr_trainer.data.case_images.read_case`).
        RuntimeError: a worker process died.

    Example:
        >>> plans = PlansManager("nnUNet_preprocessed/Dataset027_ACDC/ALHVRPlans.json")
        >>> configuration = plans.get_configuration("2d")
        >>> preprocess_unlabeled(cases, plans, configuration, dataset_json, folder, num_processes=4)
    """
    missing = missing_cases(folder, cases, plans_manager, configuration_manager)
    with _partial_folder(folder, missing) as partial_folder:
        preprocess = functools.partial(
            _preprocess_case,
            plans_manager=plans_manager,
            configuration_manager=configuration_manager,
            dataset_json=dataset_json,
            folder=folder,
            partial_folder=partial_folder,
        )
        run_on_cases(
            preprocess,
            {case: (case, cases[case]) for case in missing},
            useful_processes(num_processes, {case: cases[case] for case in missing}),
            "Preprocessing unlabeled cases",
            show_progress,
        )


@contextmanager
def _partial_folder(folder: str, missing: list[str]) -> Iterator[str]:
    """A subfolder: on the same file system, so that files can be moved, and out of sight of nnU-Net's listing.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        _remove_leftovers(folder)
        partial = tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}), and {len(missing)} unlabeled cases, such as "
            f"{missing[0]}, still have to be preprocessed into it (or again, after images or plans changed); run alhvr "
            "plan_and_preprocess where the folder can be written"
        ) from error
    with partial:
        yield partial.name


class _WithoutLabel:
    """Mixed into one of nnU-Net's preprocessors: checks the images, reads no label, records the source files."""

    record: dict[str, Any]

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any],
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        data, properties = read_case(image_files, plans_manager.image_reader_writer_class())
        check_channel_count(data, image_files, len(channel_names(dataset_json)))
        _check_resampled_size(data, properties, image_files, plans_manager, configuration_manager)
        properties[RECORD] = self.record
        return self.run_case_npy(data, None, properties, plans_manager, configuration_manager, dataset_json)  # type: ignore[attr-defined]


def _check_resampled_size(
    data: np.ndarray,
    properties: dict[str, Any],
    files: list[str],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
) -> None:
    """A spacing in the plans, or in a header, that is off by powers of ten would ask for all memory."""
    target = configuration_manager.spacing
    spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward][-len(target) :]
    voxels = data.size * math.prod(size / wanted for size, wanted in zip(spacing, target, strict=True))
    if voxels > MOST_VOXELS:
        raise InputError(
            f"{files[0]} would have {voxels:.1e} voxels at the spacing {target} of the plans: correct its own spacing "
            f"of {spacing} mm, or the plans"
        )


def _preprocess_case(
    case: str,
    files: list[str],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict[str, Any],
    folder: str,
    partial_folder: str,
) -> None:
    base = configuration_manager.preprocessor_class
    preprocessor = type(f"{base.__name__}WithoutLabel", (_WithoutLabel, base), {})(verbose=False)
    # before reading: a file that changes meanwhile is then noticed
    settings = _settings(plans_manager, configuration_manager)
    preprocessor.record = {"settings": settings, "files": source_stamps(files)}
    target = tempfile.mkdtemp(prefix=f"{case}.", dir=partial_folder)  # a killed worker may have left one
    preprocessor.run_case_save(
        os.path.join(target, case), files, None, plans_manager, configuration_manager, dataset_json
    )
    # unless a training of another fold was faster, and may be reading the files already
    if not _is_up_to_date(folder, case, preprocessor.record["settings"], files):
        _move_case(Path(target), Path(folder), case)
    shutil.rmtree(target)


def _move_case(source: Path, folder: Path, case: str) -> None:
    """The old ``.pkl`` is removed first and the new one comes last, so it never describes half a case."""
    (folder / f"{case}.pkl").unlink(missing_ok=True)
    for file in sorted(source.iterdir(), key=lambda file: file.suffix == ".pkl"):
        os.replace(file, folder / file.name)


def _settings(plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> dict[str, Any]:
    """Everything in the plans that preprocessed images depend on, as plain JSON values."""
    settings = {key: configuration_manager.configuration.get(key) for key in _FROM_CONFIGURATION}
    settings["transpose_forward"] = plans_manager.transpose_forward
    settings["image_reader_writer"] = plans_manager.plans["image_reader_writer"]
    settings["intensities"] = plans_manager.foreground_intensity_properties_per_channel
    return json.loads(json.dumps(settings))


def _is_up_to_date(folder: str, case: str, settings: dict[str, Any], files: list[str]) -> bool:
    properties = _stored_properties(folder, case)
    record = properties.get(RECORD) or {}
    stamps = renewed_stamps(record.get("files"), files) if record.get("settings") == settings else None
    if stamps is not None and stamps != record["files"]:
        properties[RECORD] = {**record, "files": stamps}
        with suppress(OSError), replacing(Path(folder) / f"{case}.pkl") as part:  # the folder may be read-only
            part.write_bytes(pickle.dumps(properties))
    return stamps is not None


def _remove_leftovers(folder: str) -> None:
    """Partial files of killed runs; a day old, as a training of another fold may be at work beside this one."""
    for leftover in Path(folder).glob(f"{PARTIAL}*"):
        if time.time() - leftover.stat().st_mtime > 24 * 3600:
            shutil.rmtree(leftover, ignore_errors=True)


def _stored_properties(folder: str, case: str) -> dict[str, Any]:
    try:
        properties = pickle.loads((Path(folder) / f"{case}.pkl").read_bytes())  # as nnU-Net reads it
    except Exception:  # broken pickles raise anything: the case is preprocessed again
        return {}
    return properties if isinstance(properties, dict) else {}
