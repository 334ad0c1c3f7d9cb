"""``alhvr report``: one HTML file about a finished training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alhvr_trainer.bundle.scripts.overwriting import inside_raw_dataset
from alhvr_trainer.config.files import check_folder, is_whole, write_text
from alhvr_trainer.config.names import TRAINER_NAME, WEIGHTS_FILE
from alhvr_trainer.devices import check_device
from alhvr_trainer.errors import InputError

if TYPE_CHECKING:
    from alhvr_trainer.data.dataset import Cases, Dataset
    from alhvr_trainer.models import TrainedModel
    from alhvr_trainer.reports.cases import Reader, ShownCase

PAGE = "report.html"
MOST_CASES = 20
"""Of validation cases: more make each too small for the page."""
MOST_UNSURE = 4
"""Of the unlabeled cases that are predicted, so many are shown, the least sure ones."""


def report(
    dataset: int | str | None = None,
    configuration: str | None = None,
    fold: int | str = 0,
    *,
    plans: str | None = None,
    trainer: str = TRAINER_NAME,
    model_folder: str | Path | None = None,
    weights_file: str = WEIGHTS_FILE,
    output: str | Path | None = None,
    validation: int = 4,
    unlabeled: int = 8,
    device: str = "cuda",
    num_processes: int = 3,
) -> Path:
    """Write one HTML file about a finished training: curves, warnings, worst validation and least sure unlabeled cases.

    The file needs no server and no network. With the extra "report" (pip install "alhvr-trainer[report]") it shows the
    cases in 3D as well, with reference, prediction, entropy and ALHVR's regions to switch on and off. Of the unlabeled
    cases whose regions the training mapped (setting region_maps), the page shows these early, midway and late.

    Args:
        dataset: id or name; with configuration, plans and trainer it names the model.
        configuration: e.g. 2d or 3d_fullres.
        fold: one fold, or "all".
        plans: plans identifier; default: that of the only such model, else ALHVRPlans.
        trainer: trainer that the model was trained with.
        model_folder: nnU-Net's folder of the model, TRAINER__PLANS__CONFIGURATION, in place of dataset,
            configuration, plans and trainer.
        weights_file: name of the checkpoint.
        output: file to write, *.html; default: report.html in the fold's folder.
        validation: how many validation cases to show, those of lowest Dice; at most 20.
        unlabeled: how many unlabeled cases to predict at most, evenly spread over their names; of these the 4 least
            sure are shown. 0: none is predicted.
        device: "cuda", "cpu" or "mps", for the unlabeled cases.
        num_processes: worker processes of the prediction.

    Returns:
        The file. It is smaller than 25 MB.

    Raises:
        InputError: model, options or files cannot be used; the message says which and what to do.

    Example:
        alhvr report -d 27 -c 2d -f 0
        alhvr report -m models/ALHVRTrainer__ALHVRPlans__2d --output report.html --unlabeled 0
    """
    if not is_whole(validation, 0, MOST_CASES):
        raise InputError(f"validation is {validation!r}; it must be a whole number from 0 to {MOST_CASES}")
    if not is_whole(unlabeled, 0, 10**6):
        raise InputError(f"unlabeled is {unlabeled!r}; it must be a whole number of at least 0")
    if not is_whole(num_processes, 1, 10**4):
        raise InputError(f"num_processes is {num_processes!r}; it must be at least 1")
    if output is not None:
        _check_output(Path(output))
    from alhvr_trainer.models import model_named, one_fold

    number = one_fold(fold, "a report is about one training")
    model = model_named(dataset, configuration, number, plans, trainer, weights_file, model_folder)
    target = Path(output) if output is not None else model.checkpoint_path(number).with_name(PAGE)
    check_folder(target.parent)
    return _write(model, number, target, validation, unlabeled, {"device": device, "num_processes": num_processes})


def _check_output(output: Path) -> None:
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"output {output} is no name of a page; name a file that ends in .html")
    if output.is_dir():
        raise InputError(f"output {output} is a folder; name a file in it: {output / PAGE}")
    check_folder(output.parent)
    problem = inside_raw_dataset(output.parent)
    if problem:
        raise InputError(problem)


def _write(
    model: TrainedModel, fold: int | str, target: Path, validation: int, unlabeled: int, predicting: dict[str, object]
) -> Path:
    from alhvr_trainer.data.stream import evenly
    from alhvr_trainer.reports.cases import Reader, class_values, read_validation, worst
    from alhvr_trainer.reports.document import Document, document
    from alhvr_trainer.reports.training import read_training

    data = raw_dataset(model.dataset)
    folder = model.checkpoint_path(fold).parent / "validation"
    dice = read_validation(folder, class_values(model), model.dataset_json["file_ending"])
    of_fold = _unlabeled(data, fold) if data else {}
    chosen = {case: of_fold[case] for case in evenly(list(of_fold), unlabeled)}
    if chosen:
        _check_prediction(model, str(predicting["device"]))
    training = read_training(model, fold)
    notes, reader = [], Reader(model)
    if data is None:
        notes.append(
            f"No cases are shown: there is no raw dataset {model.dataset} here. Set nnUNet_raw and nnUNet_preprocessed "
            "to nnU-Net's folders, and write the report again."
        )
    if dice is None:
        notes.append("The training was not validated: nnU-Net's validation/summary.json is not there.")
    worst_cases = []
    if data and dice:
        for case in worst(dice, validation):
            found = _validation_case(model, reader, data, folder, case, dice[case])
            if found is None:
                notes.append(f"Validation case {case} is not shown: its image, reference or prediction is not there.")
            else:
                worst_cases.append(found)
    unsure = _unsure_cases(model, reader, fold, chosen, predicting) if chosen else []
    mapped = _mapped_cases(model, reader, of_fold, folder.parent, notes)
    parts = Document(model, fold, training, dice, worst_cases, unsure, mapped, len(chosen), len(of_fold), notes)
    write_text(target, document(parts))
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB", flush=True)
    return target


def raw_dataset(name: str) -> Dataset | None:
    """The raw dataset that a model was trained on; None if it, or nnU-Net's folders, are not on this machine."""
    from alhvr_trainer.compatibility import nnunet_folder_if_set
    from alhvr_trainer.data.dataset import named_dataset, raw_folder

    if not all(nnunet_folder_if_set(variable) for variable in ("nnUNet_raw", "nnUNet_preprocessed")):
        return None
    return named_dataset(name) if Path(raw_folder(name)).is_dir() else None


def _unlabeled(data: Dataset, fold: int | str) -> Cases:
    """Those of the unlabeled folders, and those that the fold hides."""
    hidden = [case for case in data.fold(fold, (), ()).hidden if case in data.images]
    if not (data.unlabeled_images or hidden):
        return {}
    return data.with_hidden(hidden, f"fold {fold}")


def _check_prediction(model: TrainedModel, device: str) -> None:
    """Before anything is computed.

    Raises:
        InputError: what ``alhvr predict --uncertainty`` could not do.
    """
    from alhvr_trainer.commands.uncertainty_maps import uncertainty_of

    try:
        check_device(device)
        stage = model.configuration_manager.previous_stage_name
        if stage is not None:
            raise InputError(f"{model.configuration} is the second stage of a cascade, which needs {stage} first")
        uncertainty_of(model, "a", mirroring=True)
    except InputError as error:
        raise InputError(f"{error}; or predict no unlabeled cases: --unlabeled 0") from error


def _validation_case(
    model: TrainedModel, reader: Reader, data: Dataset, folder: Path, case: str, dice: dict[str, float]
) -> ShownCase | None:
    from alhvr_trainer.reports.cases import reference_file, validation_case

    prediction = reference_file(model, [folder], case)
    places = [Path(data.preprocessed, "gt_segmentations"), Path(str(data.raw), "labelsTr")]
    reference = reference_file(model, places, case)
    images = data.images.get(case)
    if not (prediction and reference and images):
        return None
    return validation_case(reader, case, images, reference, prediction, dice)


def _mapped_cases(
    model: TrainedModel, reader: Reader, unlabeled: Cases, fold: Path, notes: list[str]
) -> list[ShownCase]:
    """Those whose regions the training mapped; what cannot be shown is added to the notes."""
    from alhvr_trainer.reports.cases import mapped_case

    shown = []
    for case, images in unlabeled.items():
        try:
            found = mapped_case(reader, case, images, fold, model.dataset_json["file_ending"])
        except InputError as error:
            notes.append(f"The regions of unlabeled case {case} are not shown: {error}.")
            continue
        if found is not None:
            shown.append(found)
    return shown


def _unsure_cases(
    model: TrainedModel, reader: Reader, fold: int | str, chosen: Cases, predicting: dict[str, object]
) -> list[ShownCase]:
    from alhvr_trainer.config.names import UNCERTAINTY_FOLDER
    from alhvr_trainer.reports.cases import least_sure, predicted, unlabeled_case

    ending = model.dataset_json["file_ending"]
    with predicted(model, fold, chosen, **predicting) as folder:
        names = least_sure(folder / UNCERTAINTY_FOLDER, list(chosen), MOST_UNSURE)
        return [unlabeled_case(reader, case, chosen[case], folder, ending) for case in names]
