"""Dice, Jaccard and surface distances of a folder of segmentations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alhvr_trainer.bundle.scripts.overwriting import inside_raw_dataset, overwritten_input
from alhvr_trainer.config.files import check_folder, read_object
from alhvr_trainer.errors import InputError

if TYPE_CHECKING:
    from alhvr_trainer.bundle.scripts.label_files import Labels


def evaluate(
    predictions: str | Path,
    references: str | Path,
    dataset_json: str | Path | dict[str, Any],
    output: str | Path | None = None,
    only_predicted: bool = False,
) -> dict[str, Any]:
    """Compare a folder of segmentations with a folder of references; print mean ± SD per class and overall.

    What the numbers mean:

    - Files are read with the reader that nnU-Net chooses for the dataset, so in its spacing. Every class or region
      of ``dataset.json`` except the background is measured on its own, per case, on the whole volume; voxels that
      the reference marks as *ignore* count as empty in both.
    - Distances are in mm, or in voxels where the format has no sizes (pictures). In a volume of one slice they
      are those of the slice.
    - **Dice**, **Jaccard** (IoU): shares from 0 to 1. Both masks empty: undefined and left out (nnU-Net's
      NaN). One empty: 0.
    - **HD95**: the larger one of the two directed 95th percentiles of surface distances (MONAI's).
    - **HD95_pooled**: the 95th percentile of the distances of both directions pooled: medpy's ``hd95``, which
      papers report as 95HD. A false part of 7 % of one surface makes HD95 large and leaves HD95_pooled small.
    - **ASD**: mean distance from the prediction's surface to the reference's, *directed*: the default of
      MONAI and the same number as medpy's ``asd``, which SSL4MIS-style papers report. It does not see
      parts of the reference that the prediction misses.
    - Distances of a class that is empty on one or both sides are undefined: left out of the means and counted.
    - **mean ± SD** of a class: over its cases. "overall": every case's mean over its defined classes
      first, then over the cases. ``sd`` is the sample standard deviation (n - 1, as most papers'
      statistics), ``sd_population`` divides by n (``numpy.std``).

    Args:
        predictions: folder with one file per case, named as the references.
        references: folder with the reference segmentations, e.g. ``labelsTs``.
        dataset_json: path of the ``dataset.json`` that names classes and file ending; in Python also its content.
        output: folder for ``metrics.csv`` (one row per case and class) and ``metrics.json`` (everything);
            default: write nothing.
        only_predicted: leave out references without a prediction; else they are an error.

    Returns:
        What ``metrics.json`` holds: ``cases[case][class][metric]`` (None where undefined),
        ``classes[class][metric]`` and ``overall[metric]`` with ``mean``, ``sd``, ``sd_population``, ``n``,
        ``empty[class]``, the number of cases in which the prediction, the reference or both had no voxel, and
        the ``unit`` of the distances.

    Raises:
        InputError: no matching files, a reference without prediction, an unreadable file, different shape or
            geometry, NaN, fractions, or a label that dataset.json doesn't have; or ``output`` would replace an input.

    Example:
        alhvr evaluate --predictions OUT --references labelsTs --dataset_json dataset.json --output scores
    """
    from tqdm import tqdm

    # here, for the help does without NumPy and nibabel
    from alhvr_trainer.bundle.scripts.label_files import common_unit, read_pair
    from alhvr_trainer.bundle.scripts.metrics import case_metrics, metrics_files, summarize, table, write_metrics

    labels, content = _read_dataset_json(dataset_json)
    pairs = _matched_cases(Path(predictions), Path(references), content["file_ending"], only_predicted)
    if output is not None:
        check_folder(output)
    inputs = [*(file for pair in pairs.values() for file in pair)]
    inputs += [] if isinstance(dataset_json, dict) else [Path(dataset_json)]
    problem = None
    if output is not None:
        problem = overwritten_input(inputs, metrics_files(Path(output))) or inside_raw_dataset(output)
    if problem:
        raise InputError(problem)
    cases, units = {}, {}
    for case, files in tqdm(pairs.items(), desc="evaluate", unit="case"):
        prediction, reference = read_pair(files[0], files[1], labels, content)
        units[case] = reference.unit
        cases[case] = case_metrics(prediction.array, reference.array, labels.classes, reference.spacing, labels.ignore)
    result = summarize(cases, common_unit(units))
    print(table(result), flush=True)
    if output is not None:
        write_metrics(result, Path(output))
    return result


def _read_dataset_json(source: str | Path | dict[str, Any]) -> tuple[Labels, dict[str, Any]]:
    """Labels, and the whole content.

    Raises:
        InputError: unreadable, or a key is missing or of the wrong form.
    """
    from alhvr_trainer.bundle.scripts.label_files import labels_of
    from alhvr_trainer.config.dataset_json import LabelsAndEnding
    from alhvr_trainer.config.validation import validated

    where, content = ("dataset.json", source) if isinstance(source, dict) else (str(source), read_object(source))
    validated(LabelsAndEnding, content, where)
    labels = labels_of(content["labels"])
    if not labels.classes:
        raise InputError(f"{where} has no label besides the background")
    return labels, content


def _matched_cases(
    predictions: Path, references: Path, ending: str, only_predicted: bool = False
) -> dict[str, tuple[Path, Path]]:
    """Case -> (prediction file, reference file); says which files have no partner.

    Raises:
        InputError: a folder is missing or empty, nothing matches, or (unless ``only_predicted``) a reference
            has no prediction.
    """
    from alhvr_trainer.bundle.scripts.label_files import listed

    predicted = _cases(predictions, "predictions", ending)
    reference = _cases(references, "references", ending)
    if predictions.samefile(references):
        raise InputError(
            f"{predictions} and {references} are the same folder: predictions would be their own references"
        )
    cases = sorted(set(predicted) & set(reference))
    if not cases:
        raise InputError(f"no file in {predictions} has the name of a file in {references}")
    missing, extra = set(reference) - set(predicted), set(predicted) - set(reference)
    if missing and not only_predicted:
        raise InputError(
            f"{len(missing)} of {len(reference)} references have no prediction in {predictions}: "
            f"{listed(missing)}; predict them, or leave them out with only_predicted"
        )
    if missing:
        print(f"left out, references without prediction: {listed(missing)}", flush=True)
    if extra:
        print(f"left out, predictions without reference: {listed(extra)}", flush=True)
    return {case: (predicted[case], reference[case]) for case in cases}


def _cases(folder: Path, role: str, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{role} {folder} is {'a file' if folder.exists() else 'missing'}; name a folder")
    files = {file.name[: -len(ending)]: file for file in folder.iterdir() if file.name.endswith(ending)}
    files = {case: file for case, file in files.items() if not file.name.startswith(".")}
    if not files:
        raise InputError(f'no file in the folder of {role} {folder} ends in "{ending}", as dataset.json says')
    return files
