"""``alhvr move_labeled``: finished label files become labeled training cases."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alhvr_trainer.config.files import read_json, replacing, write_json
from alhvr_trainer.config.names import JOURNAL, UNLABELED_KEY
from alhvr_trainer.errors import InputError

if TYPE_CHECKING:
    from alhvr_trainer.data.dataset import Cases, Dataset
    from alhvr_trainer.data.splits import Splits


def move_labeled(
    dataset: int | str,
    labels: str | Path,
    fold: int | str | Sequence[int] | None = None,
    new_fingerprint: bool = False,
    dry_run: bool = False,
    num_processes: int | None = None,
) -> list[str]:
    """Take finished label files into a dataset: their cases leave the unlabeled ones and become training cases.

    Images move from the unlabeled folder to imagesTr, labels are copied to labelsTr, dataset.json counts them, every
    fold of splits_final.json trains on them, and configurations that are preprocessed get them preprocessed with the
    plans that are there. Interrupted, the same command finishes the work.

    Args:
        dataset: id or name.
        labels: folder of the label files, CASE.nii.gz and so on, or one of them. They stay where they are.
        fold: the folds that get the cases ("0,1"); default: all. Another fold goes on without them.
        new_fingerprint: plan anew instead: nothing is preprocessed; run alhvr plan_and_preprocess --clean afterwards,
            and train again from the start.
        dry_run: check and print only.
        num_processes: worker processes for preprocessing; default: nnU-Net's.

    Returns:
        The cases.

    Raises:
        InputError: a label file is of no unlabeled case, is no label map of this dataset, or does not lie on the
            voxels of its image. Nothing is changed then.

    Example:
        alhvr move_labeled -d 27 finished_labels
    """
    from alhvr_trainer.data.dataset import find_dataset
    from alhvr_trainer.data.workers import default_processes

    found = find_dataset(dataset)
    journal = Path(str(found.raw), JOURNAL)
    if dry_run and journal.is_file():
        raise InputError(f"{journal}: an earlier call was interrupted; repeat it without --dry_run")
    _move(journal)
    if "dataset" in found.dataset_json:
        raise InputError(
            f'dataset.json of {found.name} lists its cases under "dataset": add the new ones there by hand'
        )
    files = label_files(Path(labels), found)
    wanted = _folds(fold, found.splits)
    splits = with_labeled(found.splits, list(files), wanted)
    for case, file in files.items():
        check_label(file, _images(found, case), found.dataset_json)
        _check_no_other_label(file, found)
    moved = [case for case in files if case in found.unlabeled_images]
    print(f"{found.name}: {len(files)} cases become labeled: {', '.join(files)}")
    if dry_run:
        return list(files)
    raw = Path(str(found.raw))
    for file in files.values():
        target = raw / "labelsTr" / file.name
        if not target.exists() or not target.samefile(file):
            with replacing(target) as part:
                shutil.copyfile(file, part)
    images = [image for case in moved for image in sources_of(found.unlabeled_images[case])]
    write_json([[image, str(raw / "imagesTr" / Path(image).name)] for image in images], journal)
    _move(journal)
    count = len(find_dataset(dataset).images)
    write_json({**found.dataset_json, "numTraining": count}, raw / "dataset.json", indent=4)
    if found.splits:
        _write_splits(splits, found)
    if not new_fingerprint:
        processes = default_processes() if num_processes is None else num_processes
        _preprocess(find_dataset(dataset), list(files), processes)
    return list(files)


def label_files(labels: Path, dataset: Dataset) -> dict[str, Path]:
    """Case -> label file; cases that are labeled already by this very command count as well.

    Raises:
        InputError: no such folder, no label file in it, or one whose case is not unlabeled.
    """
    ending = dataset.dataset_json["file_ending"]
    if not labels.exists():
        raise InputError(f"labels {labels} does not exist; name a folder of label files, or one of them")
    listed = sorted(labels.iterdir()) if labels.is_dir() else [labels]
    files = {file.name.removesuffix(ending): file for file in listed if file.name.endswith(ending)}
    if not files:
        raise InputError(f"no label file CASE{ending} in {labels}")
    known = {**dataset.unlabeled_images, **{case: [] for case in dataset.hidden}}
    begun = {case for case, file in files.items() if case in dataset.images and _same_label(file, dataset)}
    unknown = [case for case in files if case not in known and case not in begun]
    if unknown:
        what = "is labeled already" if unknown[0] in dataset.images else "is no case"
        raise InputError(
            f"{files[unknown[0]]}: {unknown[0]} {what} of {dataset.name}; label files bear the names of unlabeled cases"
        )
    return files


def _same_label(file: Path, dataset: Dataset) -> bool:
    there = Path(str(dataset.raw), "labelsTr", file.name)
    return there.is_file() and there.read_bytes() == file.read_bytes()


def _check_no_other_label(file: Path, dataset: Dataset) -> None:
    """A hidden case has a label, which other folds may train on or validate with."""
    there = Path(str(dataset.raw), "labelsTr", file.name)
    if there.is_file() and not _same_label(file, dataset):
        raise InputError(f"{there} is another label of this case than {file}: remove the one that does not count")


def _images(dataset: Dataset, case: str) -> list[str]:
    return dataset.unlabeled_images[case] if case in dataset.unlabeled_images else dataset.images[case]


def sources_of(images: Sequence[str]) -> list[str]:
    """The files of a case, with those that they refer to."""
    from alhvr_trainer.data.sources import companions

    beside = [companion for image in images for companion in companions(image)]
    return [file for file in dict.fromkeys([*beside, *images]) if os.path.isfile(file)]


def _move(journal: Path) -> None:
    """Move the files that the journal lists, and remove it: half a case would be no case of the dataset."""
    if not journal.is_file():
        return
    for source, target in read_json(journal):
        if os.path.isfile(source):
            shutil.move(source, target)
    journal.unlink()


def check_label(file: Path, images: Sequence[str], dataset_json: dict[str, Any]) -> None:
    """A label file is a label map of the dataset on the voxels of its image.

    Raises:
        InputError: it is unreadable, has other values than the labels, or lies on other voxels.
    """
    from alhvr_trainer.bundle.scripts.label_files import (
        check_values,
        different_voxels,
        grid_of,
        labels_of,
        read_label_map,
    )

    found = read_label_map(file, dataset_json)
    check_values(found, labels_of(dataset_json["labels"]), file)
    problem = different_voxels(found.grid, grid_of(Path(images[0]), dataset_json), (file, images[0]))
    if problem:
        raise InputError(problem)


def _folds(fold: Any, splits: Splits) -> list[int]:
    if fold is None:
        return list(range(len(splits)))
    from alhvr_trainer.models import parse_folds

    numbers = [number for number in parse_folds(fold) if number != "all"]
    bad = [number for number in numbers if int(number) >= len(splits)]
    if bad or len(numbers) == 0:
        raise InputError(f"fold is {fold!r}; splits_final.json has {len(splits)} folds, numbered from 0")
    return [int(number) for number in numbers]


def with_labeled(splits: Splits, cases: Sequence[str], folds: Sequence[int]) -> Splits:
    """The splits in which these folds train on the cases.

    Raises:
        InputError: one is a validation case of such a fold.

    Example:
        >>> with_labeled([{"train": ["a"], "val": ["b"], "unlabeled": ["c", "d"]}], ["c"], [0])
        [{'train': ['a', 'c'], 'val': ['b'], 'unlabeled': ['d']}]
    """
    changed = []
    for number, split in enumerate(splits):
        if number not in folds:
            changed.append(split)
            continue
        both = sorted(set(split["val"]) & set(cases))
        if both:
            raise InputError(f"{both[0]} is a validation case of fold {number}: its label is no training label")
        new = {**split, "train": [*split["train"], *(case for case in cases if case not in split["train"])]}
        if UNLABELED_KEY in split:
            new[UNLABELED_KEY] = [case for case in split[UNLABELED_KEY] if case not in cases]
        changed.append(new)
    return changed


def _write_splits(splits: Splits, dataset: Dataset) -> None:
    from alhvr_trainer.data.splits import SPLITS_FILE

    for folder in (dataset.preprocessed, str(dataset.raw)):  # nnU-Net refuses two that differ
        file = Path(folder, SPLITS_FILE)
        if file.is_file():
            write_json(splits, file)


def _preprocess(dataset: Dataset, cases: list[str], processes: int) -> None:
    """nnU-Net's preprocessing of these cases with all plans whose configurations are preprocessed."""
    from alhvr_trainer.data.preprocessing import unlabeled_folder
    from alhvr_trainer.data.workers import run_on_cases, useful_processes

    preprocessed, ending = Path(dataset.preprocessed), dataset.dataset_json["file_ending"]
    if not preprocessed.is_dir():
        return
    labels = {case: Path(str(dataset.raw), "labelsTr", f"{case}{ending}") for case in cases}
    references = preprocessed / "gt_segmentations"
    for file in labels.values():
        if references.is_dir():
            shutil.copyfile(file, references / file.name)
    if (preprocessed / "dataset.json").is_file():
        shutil.copyfile(Path(str(dataset.raw), "dataset.json"), preprocessed / "dataset.json")
    images: Cases = {case: dataset.images[case] for case in cases}
    for folder, (plans, name) in _preprocessed_folders(preprocessed).items():
        run_on_cases(
            preprocess_labeled,
            {
                case: (case, files, str(labels[case]), plans, name, dataset.dataset_json, str(folder))
                for case, files in images.items()
            },
            useful_processes(processes, images),
            f"Preprocessing {len(cases)} new labeled cases for {folder.name}",
        )
        for case in cases:
            for rest in (".pkl", ".b2nd", "_seg.b2nd"):
                Path(unlabeled_folder(str(folder)), f"{case}{rest}").unlink(missing_ok=True)


def _preprocessed_folders(preprocessed: Path) -> dict[Path, tuple[dict[str, Any], str]]:
    """nnU-Net's folders of preprocessed cases that are there -> plans and configuration of one that uses them."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from alhvr_trainer.config.files import read_object
    from alhvr_trainer.config.lookup import plans_in

    found = {}
    for identifier in plans_in(preprocessed):
        plans = read_object(preprocessed / f"{identifier}.json")
        manager = PlansManager(plans)
        for name in manager.available_configurations:
            found[preprocessed / manager.get_configuration(name).data_identifier] = (plans, name)
    return {folder: used for folder, used in found.items() if folder.is_dir()}


def preprocess_labeled(
    case: str, images: list[str], label: str, plans: dict[str, Any], name: str, dataset_json: Any, folder: str
) -> None:
    """One case by nnU-Net's preprocessor, as ``nnUNetv2_preprocess`` does it.

    Args:
        case: its name.
        images: files in channel order.
        label: file.
        plans: content of a plans file.
        name: of the configuration.
        dataset_json: content of dataset.json.
        folder: nnU-Net's, of the configuration's preprocessed cases.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from alhvr_trainer.data.preprocessing import PARTIAL

    manager = PlansManager(plans)
    configuration = manager.get_configuration(name)
    preprocessor = configuration.preprocessor_class(verbose=False)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder) as scratch:
        preprocessor.run_case_save(os.path.join(scratch, case), images, label, manager, configuration, dataset_json)
        # nnU-Net takes a case for complete when its image is there
        for ending in (".pkl", "_seg.b2nd", ".b2nd"):
            os.replace(os.path.join(scratch, f"{case}{ending}"), os.path.join(folder, f"{case}{ending}"))
